# SPDX-License-Identifier: BSD-2-Clause
"""A store in RADOS, Ceph's objects: the engine for clusters. No file system, no daemon of ours, nothing to fail over.

All objects are in one namespace of one replicated pool. What an object is, its name says:

    store                       {"kind", "version", "uuid"}: without it, or with another version, nothing is touched
    store.lock                  the lock of the whole store; beside it, the rename that is under way
    names                       table: the names there may be; a name is entered before its head is made
    head.NAME                   the map, or where it is; its attribute `info` has the facts; all change at once
    body.GENERATION.PART        a map above 4 MiB; the head names the generation, so it changes at once all the same
    only.WORK                   a lock for work of which there is one at a time
    lock.NAME, wanted.NAME      the lock (rados_locks.py); the other side of a migration asks for it
    layers, index.*, data.*     the pages (rados_layers.py)
    content.DIGEST              a content block
    contents.XX                 tables: the digests whose first byte is XX, modulo 64; entered before the block is made

So everything is found by its name or in a table, and nothing needs a walk over the pool. What a death may leave are
entries in tables without an object, and parts of a map that no head names, but the entry in `names` does.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from extstorage import maps
from extstorage.errors import AlreadyThereError, BadStoreError, BrokenError, BusyError, HeldError, NoSuchVolumeError
from extstorage.maps import Source, VolumeMap
from extstorage.names import BLOCK, PAGE
from extstorage.rados_errors import ChangedObjectError, NoAttributeError, NoObjectError
from extstorage.rados_layers import (
    LAYERS,
    ContentBlock,
    data_key,
    index_key,
    indexed,
    make_layer,
    open_layer,
    read_pages,
    source_of,
    stem_of,
)
from extstorage.rados_locks import HeldLock, Identity, Locks
from extstorage.rados_pool import Change, Client, Objects
from extstorage.store import Info, Layer, Space, decode_info, encode_info
from extstorage.stores import RadosSpec

KIND = "snf-archipelago"
VERSION = 1

#: Seconds for the lock of the whole store, whose holders are quick.
LOCK_TIMEOUT = 60.0

_HEADER = "store"
_STORE_LOCK = "store.lock"
_NAMES = "names"
_INFO = "info"
_INTENT = "rename"

#: What one object holds of a map. Larger objects would be slow to recover in the cluster.
PART = BLOCK
_MOST_PARTS = 1024
_ELSEWHERE = b"SNFBODY\n"
_LARGEST_HEADER = 4096
_TRIES = 5

#: Tables of content blocks: with 16 TiB of content, 65000 entries in each.
_SHARDS = 64


class RadosStore:
    """See the module. Make one with `open_store` or `create_store`."""

    atomic_pages = True
    foreign: Callable[[bytes], Layer | None] | None = None

    def __init__(self, spec: RadosSpec, deadline: float, identity: Identity | None = None) -> None:
        self._spec = spec
        self._deadline = deadline
        self.patience = 1.5 * spec.lease + 1
        self._identity = identity or Identity.own()
        self._mutex = threading.Lock()
        self._store_lock: HeldLock | None = None
        self._connect()

    def _connect(self) -> None:
        self._client = Client(self._spec, self._deadline)
        self._locks = Locks(self._client, self._spec.lease, self._identity)

    @property
    def _objects(self) -> Objects:
        """A client that was shut out is replaced, but only when nobody acts on a lock that it had."""
        with self._mutex:
            if self._client.objects.fenced and not self._locks.are_used:
                self._locks.close()
                self._connect()
            return self._client.objects

    def close(self) -> None:
        self._locks.close()
        self._client.close()

    @property
    def title(self) -> str:
        return str(self._spec)

    def space(self) -> Space:
        return self._client.space()

    # Maps.

    def names(self) -> list[str]:
        entered = sorted(self._objects.entries(_NAMES))
        return [
            name for name, there in zip(entered, self._objects.parallel(self.exists, entered), strict=True) if there
        ]

    def exists(self, name: str) -> bool:
        return self.map_version(name) is not None

    def previous_map(self, name: str) -> VolumeMap | None:  # noqa: ARG002 - `store.py` prescribes it
        return None

    def forget_previous_maps(self) -> None:
        """There are none: RADOS keeps copies, and finds out which one is bad."""

    def map_version(self, name: str) -> int | None:
        try:
            return self._objects.version(_head(name))
        except NoObjectError:
            return None

    def read_map(self, name: str) -> VolumeMap:
        return maps.decode(self._read_bytes(name), self._path(name))

    def _read_bytes(self, name: str) -> bytes:
        for _ in range(_TRIES):
            data = self._read_head(name)
            if not data.startswith(_ELSEWHERE):
                return data
            where = self._where(name, data)
            with contextlib.suppress(NoObjectError):
                keys = [_body(where, part) for part in range(int(where["parts"]))]
                return b"".join(self._objects.parallel(self._read_part, keys))
            # It was replaced meanwhile; the head tells by what.
        raise BrokenError(path=self._path(name), reason="a part of the map is missing")

    def _read_part(self, key: str) -> bytes:
        return self._objects.read(key, PART)

    def read_heads(self, name: str) -> VolumeMap:
        for _ in range(_TRIES):
            data = self._read_head(name)
            where = self._where(name, data) if data.startswith(_ELSEWHERE) else None
            with contextlib.suppress(NoObjectError):
                return maps.decode_heads(_Beginning(self._objects, data, where).read, self._path(name))
        raise BrokenError(path=self._path(name), reason="a part of the map is missing")

    def _read_head(self, name: str) -> bytes:
        try:
            return self._objects.read(_head(name), BLOCK)
        except NoObjectError:
            raise self._no_such(name) from None

    def _no_such(self, name: str) -> NoSuchVolumeError:
        return NoSuchVolumeError(what="volume or snapshot", name=name, store=self.title)

    def _path(self, name: str) -> str:
        return f"{self.title}:{_head(name)}"

    def _where(self, name: str, data: bytes) -> Mapping[str, Any]:
        try:
            where: Mapping[str, Any] = json.loads(data[len(_ELSEWHERE) :])
            if not 0 < int(where["parts"]) <= _MOST_PARTS:
                raise ValueError
            _body(where, 0)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BrokenError(path=self._path(name), reason="it does not say where the map is") from None
        return where

    def write_map(self, name: str, volume_map: VolumeMap) -> None:
        key = _head(name)
        try:
            old, version = self._objects.read_versioned(key, _LARGEST_HEADER)
        except NoObjectError:
            raise self._no_such(name) from None
        data = self._store_bodies(name, maps.encode(volume_map), old)
        # Only over what was read: a change that arrives late, after its sender gave up, must not undo another.
        self._objects.apply(key, Change().at_version(version).write_full(data))
        self._remove_bodies(name, old)

    def _store_bodies(self, name: str, data: bytes, old: bytes = b"") -> bytes:
        """What to write into the head: the map itself, or where its bytes now are."""
        if len(data) <= PART:
            return data
        if not old.endswith(self._objects.entry(_NAMES, name) or b""):
            self._forget_leftovers(name)
        parts = -(-len(data) // PART)
        where = {"generation": secrets.token_hex(8), "parts": parts}
        # On record before they are made, so that they are found if this process dies.
        self._objects.put_entry(_NAMES, name, json.dumps(where).encode())

        def put(part: int) -> None:
            self._objects.apply(_body(where, part), Change().write_full(data[part * PART : part * PART + PART]))

        list(self._objects.parallel(put, range(parts)))
        return _ELSEWHERE + json.dumps(where).encode()

    def _remove_bodies(self, name: str, head: bytes) -> None:
        if head.startswith(_ELSEWHERE):
            with contextlib.suppress(BrokenError):
                self._remove_parts(self._where(name, head))

    def _remove_parts(self, where: Mapping[str, Any]) -> None:
        for part in range(int(where["parts"])):
            self._objects.remove(_body(where, part))

    def read_info(self, name: str) -> Info:
        try:
            return decode_info(self._objects.attribute(_head(name), _INFO), self._path(name))
        except NoObjectError:
            raise self._no_such(name) from None
        except NoAttributeError:
            raise BrokenError(path=self._path(name), reason="the facts are missing") from None

    def write_info(self, name: str, info: Info) -> None:
        key = _head(name)
        for _ in range(_TRIES):
            version = self.map_version(name)
            if version is None:
                raise self._no_such(name)
            with contextlib.suppress(ChangedObjectError):
                self._objects.apply(key, Change().at_version(version).set_attribute(_INFO, encode_info(info)))
                return
        raise HeldError(name=name, holder="somebody who keeps changing it")

    def create(self, name: str, volume_map: VolumeMap, info: Info) -> None:
        self._create(name, maps.encode(volume_map), info)

    def create_copy(self, name: str, origin: str, head: VolumeMap, info: Info) -> None:
        self._create(name, maps.copied(self._read_bytes(origin), head, self._path(origin)), info)

    def _create(self, name: str, encoded: bytes, info: Info) -> None:
        if self.exists(name):
            raise AlreadyThereError(name=name, store=self.title, what="volume, snapshot or image")
        self._forget_leftovers(name)
        self._objects.put_entry(_NAMES, name, b"")
        data = self._store_bodies(name, encoded)
        change = Change().exclusive().write_full(data).set_attribute(_INFO, encode_info(info))
        try:
            self._objects.apply(_head(name), change)
        except ChangedObjectError:
            self._remove_bodies(name, data)
            raise AlreadyThereError(name=name, store=self.title, what="volume, snapshot or image") from None

    def _forget_leftovers(self, name: str) -> None:
        """Of one who died while it created the same name."""
        entry = self._objects.entry(_NAMES, name)
        if entry:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                self._remove_parts(json.loads(entry))

    def remove(self, name: str) -> None:
        with contextlib.suppress(NoObjectError):
            head = self._objects.read(_head(name), _LARGEST_HEADER)
            self._objects.remove(_head(name))
            self._remove_bodies(name, head)
        self._forget_leftovers(name)
        self._forget_name(name)

    def _forget_name(self, name: str) -> None:
        for key in (f"wanted.{name}", f"lock.{name}"):
            self._objects.remove(key)
        self._objects.drop_entry(_NAMES, name)

    def rename(self, old: str, new: str) -> None:
        """By the holder of the store's lock. If it dies, the next holder completes what it had begun."""
        if self.exists(new):
            raise AlreadyThereError(name=new, store=self.title, what="volume, snapshot or image")
        self._read_head(old)
        assert self._store_lock is not None
        self._store_lock.note(_INTENT, {"old": old, "new": new})
        self._complete_rename(old, new)
        self._store_lock.note(_INTENT, None)

    def _complete_rename(self, old: str, new: str) -> None:
        try:
            data, version = self._objects.read_versioned(_head(old), BLOCK)
            info = self._objects.attribute(_head(old), _INFO)
        except NoObjectError:
            self._forget_name(old)
            return
        self._objects.put_entry(_NAMES, new, self._objects.entry(_NAMES, old) or b"")
        with contextlib.suppress(ChangedObjectError):  # it is there if this is the second try
            self._objects.apply(_head(new), Change().exclusive().write_full(data).set_attribute(_INFO, info))
        self._objects.apply(_head(old), Change().at_version(version).remove(), force=True)
        self._forget_name(old)

    # Locks.

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        # `_objects` first: it may make a new client.
        _ = self._objects
        lock = self._locks.take_within(_STORE_LOCK, "the store itself", LOCK_TIMEOUT)
        try:
            self._store_lock = lock
            intent: Mapping[str, str] | None = lock.state.get(_INTENT)
            if intent:
                self._complete_rename(intent["old"], intent["new"])
                lock.note(_INTENT, None)
            yield
        finally:
            self._store_lock = None
            lock.release()

    @contextlib.contextmanager
    def only_one(self, work: str) -> Iterator[None]:
        _ = self._objects
        try:
            lock = self._locks.take(f"only.{work}", work, patience=self.patience)
        except HeldError:
            raise BusyError(work=work, store=self.title) from None
        try:
            yield
        finally:
            lock.release()

    def tidy(self, *, dry_run: bool = False) -> int:
        """Names without a head, left by creations that died: with the store's lock held, there are no others."""
        left = [name for name in self._objects.entries(_NAMES) if not self.exists(name)]
        for name in [] if dry_run else left:
            self._forget_leftovers(name)
            self._forget_name(name)
        return len(left)

    def lock_volume(self, name: str, *, shared: bool = False, patience: float = 0.0) -> HeldLock:
        if not self.exists(name):
            raise self._no_such(name)
        if self._store_lock is None and self._is_being_renamed(name):
            with self.locked():
                """Whoever takes the store's lock completes a rename."""
        lock = self._locks.take(f"lock.{name}", name, shared=shared, patience=patience)
        if not self.exists(name):
            lock.release()
            self._objects.remove(f"lock.{name}")
            raise self._no_such(name)
        return lock

    def _is_being_renamed(self, name: str) -> bool:
        intent: Mapping[str, str] = self._locks.peek(_STORE_LOCK).get(_INTENT) or {}
        return name in intent.values()

    def ask_for_lock(self, name: str) -> None:
        self._objects.apply(f"wanted.{name}", Change().touch(), force=True)

    def lock_is_asked_for(self, name: str) -> bool:
        try:
            self._objects.size(f"wanted.{name}")
        except NoObjectError:
            return False
        return True

    def forget_request(self, name: str) -> None:
        self._objects.remove(f"wanted.{name}")

    # Pages.

    def layer(self, source: Source, *, writable: bool = False) -> Layer:
        if source.is_content:
            return self._foreign_block(source.owner) or ContentBlock(self._objects, _content(source.owner))
        return make_layer(self._objects, source) if writable else open_layer(self._objects, source)

    def _foreign_block(self, digest: bytes) -> Layer | None:
        """Ours is looked for first, and only if there may be another: that is a question to the cluster."""
        if self.foreign is None or self._content_version(digest) is not None:
            return None
        return self.foreign(digest)

    def layers(self) -> Iterator[Source]:
        for stem in sorted(self._objects.entries(LAYERS)):
            with contextlib.suppress(ValueError):
                yield source_of(stem)

    def remove_layer(self, source: Source) -> int:
        freed = self._free(source, indexed(self._objects, source))
        self._objects.remove(index_key(source))
        self._objects.drop_entry(LAYERS, stem_of(source))
        return freed

    def free_blocks(self, source: Source, keep: Container[int]) -> int:
        gone = [index for index in indexed(self._objects, source) if index not in keep]
        freed = self._free(source, gone)
        for start in range(0, len(gone), 1000):
            change = Change()
            for index in gone[start : start + 1000]:
                change.write(index, b"\0")
            self._objects.apply(index_key(source), change, force=True)
        return freed

    def _free(self, source: Source, indexes: list[int]) -> int:
        def free(index: int) -> int:
            size = self._block_used(source, index)
            return size if self._objects.remove(data_key(source, index)) else 0

        return sum(self._objects.parallel(free, indexes))

    def used(self, source: Source) -> int:
        def used(index: int) -> int:
            return self._block_used(source, index)

        return sum(self._objects.parallel(used, indexed(self._objects, source)))

    def _block_used(self, source: Source, index: int) -> int:
        try:
            owned, zeros = read_pages(self._objects, data_key(source, index)) or (0, 0)
        except BrokenError:
            return BLOCK
        return (owned & ~zeros).bit_count() * PAGE

    # Content. The object's version tells whether it was touched.

    def put_content(self, digest: bytes, data: memoryview) -> bool:
        key, shard, entry = _content(digest), _shard(digest), digest.hex()
        while True:
            with contextlib.suppress(NoObjectError, ChangedObjectError):
                version = self._objects.version(key)
                self._objects.apply(key, Change().at_version(version).set_attribute("touched", b""))
                return False
            self._objects.put_entry(shard, entry, secrets.token_hex(8).encode())
            with contextlib.suppress(ChangedObjectError):
                self._objects.apply(key, Change().exclusive().write_full(bytes(data)))
                return True

    def sync_contents(self) -> None:
        """Each was durable at once."""

    def contents(self) -> Iterator[tuple[bytes, object]]:
        for shard in range(_SHARDS):
            found = self._objects.entries(_shard(bytes([shard])))
            digests = [bytes.fromhex(entry) for entry in sorted(found)]
            for digest, version in zip(digests, self._objects.parallel(self._content_version, digests), strict=True):
                yield digest, (version, found[digest.hex()])

    def _content_version(self, digest: bytes) -> int | None:
        try:
            return self._objects.version(_content(digest))
        except NoObjectError:
            return None

    def content_used(self, digest: bytes) -> int:
        try:
            return self._objects.size(_content(digest))
        except NoObjectError:
            return 0

    def remove_content(self, digest: bytes, version: object) -> int:
        assert isinstance(version, tuple)
        at, token = version
        freed = self.content_used(digest)
        try:
            if at is not None:
                self._objects.apply(_content(digest), Change().at_version(at).remove(), force=True)
        except NoObjectError:
            freed = 0
        except ChangedObjectError:
            return 0
        # One who is about to put it again has changed the token.
        self._objects.drop_entry(_shard(digest), digest.hex(), token)
        return freed


class _Beginning:
    """The first bytes of a map, read part by part as they are asked for."""

    def __init__(self, objects: Objects, head: bytes, where: Mapping[str, Any] | None) -> None:
        self._objects = objects
        self._where = where
        self._parts = 0
        self._rest = b"" if where else head

    def read(self, length: int) -> bytes:
        while len(self._rest) < length and self._where and self._parts < int(self._where["parts"]):
            self._rest += self._objects.read(_body(self._where, self._parts), PART)
            self._parts += 1
        found, self._rest = self._rest[:length], self._rest[length:]
        return found


def _head(name: str) -> str:
    return f"head.{name}"


def _body(where: Mapping[str, Any], part: int) -> str:
    return f"body.{where['generation']}.{part:04x}"


def _content(digest: bytes) -> str:
    return f"content.{digest.hex()}"


def _shard(digest: bytes) -> str:
    return f"contents.{digest[0] % _SHARDS:02x}"


def open_store(spec: RadosSpec, *, deadline: float = 0.0, identity: Identity | None = None) -> RadosStore:
    """Open a store that exists; raises BadStoreError."""
    store = RadosStore(spec, deadline, identity)
    try:
        _check(store._objects, spec)  # noqa: SLF001 - the other half of the class
    except BaseException:
        store.close()
        raise
    return store


def create_store(spec: RadosSpec, *, deadline: float = 0.0) -> RadosStore:
    """Make an empty store, or open the one that is there."""
    client = Client(spec, deadline)
    try:
        facts = {"kind": KIND, "version": VERSION, "uuid": str(uuid.uuid4())}
        foreign = next(client.objects.keys(), None)
        if foreign is not None and not _has_header(client.objects):
            raise BadStoreError(path=spec, reason=f"it holds other objects, such as {foreign[:100]!r}")
        with contextlib.suppress(ChangedObjectError):
            client.objects.apply(_HEADER, Change().exclusive().write_full(json.dumps(facts).encode()))
    finally:
        client.close()
    return open_store(spec, deadline=deadline)


def _has_header(objects: Objects) -> bool:
    try:
        objects.size(_HEADER)
    except NoObjectError:
        return False
    return True


def _check(objects: Objects, spec: RadosSpec) -> None:
    try:
        facts = json.loads(objects.read(_HEADER, _LARGEST_HEADER))
    except NoObjectError:
        raise BadStoreError(path=spec, reason=f"the object {_HEADER!r} is missing") from None
    except (ValueError, RecursionError) as error:
        raise BadStoreError(path=spec, reason=f"the object {_HEADER!r} can't be read: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") != KIND or facts.get("version") != VERSION:
        raise BadStoreError(path=spec, reason=f"its version is not {VERSION}")

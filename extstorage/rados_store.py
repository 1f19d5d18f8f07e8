# SPDX-License-Identifier: BSD-2-Clause
"""A store in RADOS, Ceph's objects: the engine for clusters. No file system, no daemon of ours, nothing to fail over.

All objects are in one namespace of one replicated pool. What an object is, its name says:

    store                       {"kind", "version", "uuid"}: without it, or with another version, nothing is touched
    store.lock                  the lock of the whole store; beside it, the rename that is under way
    names                       table: the names there may be; a name is entered before its head is made
    head.NAME                   the map, or its header and where its body is; its attribute `info` has the facts; all
                                change at once
    body.GENERATION.PART        the body of a large map; it never changes, for another map is another generation
    bodies                      table: the generations that several heads may name, entered before a second one does
    only.WORK                   a lock for work of which there is one at a time
    lock.NAME, wanted.NAME      the lock (rados_locks.py); the other side of a migration asks for it
    layers, index.*, data.*     the pages (rados_layers.py)
    content.DIGEST              a content block
    contents.XX                 tables: the digests whose first byte is XX, modulo 64; entered before the block is made,
                                and left there for a day after it is gone

So everything is found by its name or in a table, and nothing needs a walk over the pool, which only a check and a scrub
do. What a death may leave are entries in tables without an object, and bodies that no head names, but a table does: the
entry in `names` says which bodies were made for that name, and those in `bodies` are looked for in all heads when the
store is tidied.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from extstorage import maps
from extstorage.bitmaps import Sample, indexes_of, runs_of
from extstorage.digests import Digests
from extstorage.errors import (
    AlreadyThereError,
    BadStoreError,
    BrokenError,
    BusyError,
    HeldError,
    NoStoreError,
    NoSuchVolumeError,
)
from extstorage.maps import HEADER, MAGIC, Source, VolumeMap
from extstorage.names import BLOCK, PAGE, token
from extstorage.rados_errors import ChangedObjectError, NoAttributeError, NoObjectError, ReplacedMapError
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
from extstorage.rados_locks import FENCE_SECONDS, HeldLock, Identity, Locks
from extstorage.rados_pool import Change, Client, Objects
from extstorage.scans import Scan, scan_of
from extstorage.store import Info, Layer, R, Space, Stored, T, decode_info, encode_info
from extstorage.stores import RadosSpec

KIND = "snf-archipelago"
VERSION = 1

#: Seconds for the lock of the whole store, whose holders are quick.
LOCK_TIMEOUT = 60.0

_HEADER = "store"
_STORE_LOCK = "store.lock"
_NAMES = "names"
_BODIES = "bodies"
_INFO = "info"
_INTENT = "rename"

#: A map of more bytes has its body elsewhere, where clones and snapshots share it.
INLINE = 64 << 10

#: What one object holds of a body. Larger objects would be slow to recover in the cluster.
PART = BLOCK
_MOST_PARTS = 1024
_ELSEWHERE = re.compile(rb"SNFBODY\n([0-9a-f]{16} [0-9]{1,4}) ([0-9a-f]{8})\n")
_NOTE = re.compile(rb"([0-9a-f]{16}) ([0-9]{1,4})")
_LARGEST_HEADER = 4096
_TRIES = 5

#: Blocks that are removed at a time.
_PORTION = 10_000

#: Changes of an index at a time.
_MOST_RUNS = 1000

#: Blocks that are asked for what they occupy: of a layer, or of a table of content blocks; of all layers.
_SAMPLE = 256
_LARGE_SAMPLE = 8192

#: Tables of content blocks: with 16 TiB of content, 65000 entries in each.
_SHARDS = 64

#: Of a content block that is not there any more, and since when.
_GONE = re.compile(rb"gone ([0-9]{1,15})")
_CONTENT = re.compile(r"content\.([0-9a-f]{64})", re.ASCII)


class Body(NamedTuple):
    """Where the body of a large map is."""

    generation: str
    parts: int

    def __str__(self) -> str:
        return f"{self.generation} {self.parts}"

    def key(self, part: int) -> str:
        return f"body.{self.generation}.{part:04x}"

    @property
    def keys(self) -> list[str]:
        return [self.key(part) for part in range(self.parts)]


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
        if self._locks.close():
            self._client.close()

    @property
    def title(self) -> str:
        return str(self._spec)

    def space(self) -> Space:
        return self._client.space()

    # Maps.

    def names(self) -> list[str]:
        return list(self.versions())

    def possible_names(self) -> list[str]:
        return sorted(self._objects.entries(_NAMES))

    def versions(self) -> dict[str, object]:
        entered = self.possible_names()
        found = zip(entered, self.each(self.map_version, entered), strict=True)
        return {name: version for name, version in found if version is not None}

    def each(self, work: Callable[[T], R], arguments: Sequence[T]) -> Iterator[R]:
        return self._objects.parallel(work, arguments)

    def exists(self, name: str) -> bool:
        return self.map_version(name) is not None

    def settle_map(self, name: str) -> None:
        """What can be read is durable."""

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
        for _ in range(_TRIES):
            data, body = self._split(name, self._read_head(name))
            with contextlib.suppress(NoObjectError):
                parts = self._objects.parallel(self._read_part, body.keys) if body else ()
                return maps.decode(b"".join((data, *parts)), self._path(name))
            # It was replaced meanwhile; the head tells by what.
        raise BrokenError(path=self._path(name), reason="a part of the map is missing")

    def scan_map(self, name: str, look: Callable[[Scan], R]) -> R:
        for _ in range(_TRIES):
            data, body = self._split(name, self._read_head(name))
            with contextlib.suppress(ReplacedMapError):
                return look(self._scan(name, data, body))
        raise BrokenError(path=self._path(name), reason="a part of the map is missing")

    def _scan(self, name: str, data: bytes, body: Body | None) -> Scan:
        """A generation has one body only."""
        if body is None:
            return scan_of(data, self._path(name))

        def pieces() -> Iterator[bytes]:
            for key in body.keys:
                try:
                    yield self._read_part(key)
                except NoObjectError:
                    raise ReplacedMapError(store=self.title, name=name) from None

        return Scan(data, self._path(name), pieces, body)

    def _read_part(self, key: str) -> bytes:
        return self._objects.read(key, PART)

    def read_heads(self, name: str) -> VolumeMap:
        for _ in range(_TRIES):
            data, body = self._split(name, self._read_head(name))
            with contextlib.suppress(NoObjectError):
                return maps.decode_heads(_Beginning(self._objects, data, body).read, self._path(name))
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

    def _split(self, name: str, head: bytes) -> tuple[bytes, Body | None]:
        """The bytes of the map that are in the head, and where the others are."""
        if head.startswith(MAGIC):
            return head, None
        found = _ELSEWHERE.match(head)
        [body] = _bodies(found[1]) if found and zlib.crc32(found[1]) == int(found[2], 16) else [None]
        if found is None or body is None or not 0 < body.parts <= _MOST_PARTS:
            raise BrokenError(path=self._path(name), reason="it is not a map, and does not say where the map is")
        return head[found.end() :], body

    def write_map(self, name: str, volume_map: VolumeMap, packed: bytes = b"") -> None:
        key = _head(name)
        try:
            head, version = self._objects.read_versioned(key, _LARGEST_HEADER)
        except NoObjectError:
            raise self._no_such(name) from None
        encoded = maps.encode(volume_map, packed)
        old = self._body_of(name, head)
        if old or len(encoded) > INLINE:
            old = list(dict.fromkeys((*old, *self._noted(name))))
        data = self._stored(name, encoded, *old)
        # Only over what was read: a change that arrives late, after its sender gave up, must not undo another.
        self._objects.apply(key, Change().at_version(version).write_full(data))
        # Not before: what arrives late may name any of them.
        self._release(old)
        if old:
            self._note(name, self._body_of(name, data))

    def _body_of(self, name: str, head: bytes) -> list[Body]:
        """None of a head that is damaged."""
        with contextlib.suppress(BrokenError):
            body = self._split(name, head)[1]
            return [body] if body else []
        return []

    def _stored(self, name: str, encoded: bytes, *old: Body) -> bytes:
        """What to write into the head, once the body is in its place; `old` are what the head may name until then."""
        if len(encoded) <= INLINE:
            return encoded
        data = memoryview(encoded)[HEADER:]
        body = Body(token(), -(-len(data) // PART))
        # On record before it is made, and while the other still is there, so that both are found if this process dies.
        self._note(name, (*old, body))

        def put(part: int) -> None:
            self._objects.apply(body.key(part), Change().write_full(bytes(data[part * PART : part * PART + PART])))

        list(self._objects.parallel(put, range(body.parts)))
        return _elsewhere(body, encoded[:HEADER])

    def _note(self, name: str, bodies: Iterable[Body]) -> None:
        self._objects.put_entry(_NAMES, name, "\n".join(map(str, bodies)).encode())

    def _noted(self, name: str) -> list[Body]:
        """The bodies that were made for that name; they may be gone."""
        return _bodies(self._objects.entry(_NAMES, name) or b"")

    def _release(self, bodies: list[Body]) -> None:
        """Remove bodies that the head does not name any more. Others may name what is shared: `tidy` looks for them."""
        for body in bodies:
            if self._objects.entry(_BODIES, body.generation) is None:
                self._remove_body(body)

    def _remove_body(self, body: Body) -> None:
        list(self._objects.parallel(self._objects.remove, body.keys))

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

    def check_size(self, size: int) -> None:
        """Of blocks there may be any number."""

    def create(self, name: str, volume_map: VolumeMap, info: Info) -> None:
        self._enter(name)
        self._make_head(name, self._stored(name, maps.encode(volume_map)), info)

    def create_copy(self, name: str, origin: str, head: VolumeMap, info: Info) -> None:
        """A large body is shared, unread: who opens the copy sees whether it is whole."""
        found = self._read_head(origin)
        data, body = self._split(origin, found)
        if body is None:
            copy = maps.copied(data, head, self._path(origin))
        else:
            copy = _elsewhere(body, maps.new_header(data, head, self._path(origin)))
            self._objects.put_entry(_BODIES, body.generation, str(body).encode())
        self._enter(name)
        self._make_head(name, copy, info)

    def _enter(self, name: str) -> None:
        # What never was entered is not there, and left nothing.
        if self._objects.entry(_NAMES, name) is not None:
            if self.exists(name):
                raise self._already_there(name)
            self._forget_leftovers(name)
        self._objects.put_entry(_NAMES, name, b"")

    def _make_head(self, name: str, data: bytes, info: Info) -> None:
        change = Change().exclusive().write_full(data).set_attribute(_INFO, encode_info(info))
        try:
            self._objects.apply(_head(name), change)
        except ChangedObjectError:
            self._release(self._body_of(name, data))
            raise self._already_there(name) from None

    def _already_there(self, name: str) -> AlreadyThereError:
        return AlreadyThereError(name=name, store=self.title, what="volume, snapshot or image")

    def _forget_leftovers(self, name: str) -> None:
        """Of one who died while it created or changed the same name."""
        self._release(self._noted(name))

    def remove(self, name: str) -> None:
        with contextlib.suppress(NoObjectError):
            head = self._objects.read(_head(name), _LARGEST_HEADER)
            self._objects.remove(_head(name))
            self._release(self._body_of(name, head))
        self._forget_leftovers(name)
        self._forget_name(name)

    def _forget_name(self, name: str) -> None:
        for key in (f"wanted.{name}", f"lock.{name}"):
            self._objects.remove(key)
        self._objects.drop_entry(_NAMES, name)

    def rename(self, old: str, new: str) -> None:
        """By the holder of the store's lock. If it dies, the next holder completes what it had begun."""
        if self.exists(new):
            raise self._already_there(new)
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
        """Names without a head, left by creations that died, and bodies that were shared, of which no head is left.

        What seems to be such is looked at once more under the store's lock, under which none comes or goes.
        """
        if not any(self._leftovers()):
            return 0
        with self.locked():
            names, bodies = self._leftovers()
            for name in [] if dry_run else names:
                self._forget_leftovers(name)
                self._forget_name(name)
        # Nor can a head name them again.
        for body in [] if dry_run else bodies:
            self._remove_body(body)
            self._objects.drop_entry(_BODIES, body.generation)
        return len(names) + len(bodies)

    def _leftovers(self) -> tuple[list[str], list[Body]]:
        names = self.possible_names()
        heads = dict(zip(names, self.each(self._beginning, names), strict=True))
        bodies = self._unused_bodies({name: head for name, head in heads.items() if head is not None})
        return [name for name, head in heads.items() if head is None], bodies

    def _beginning(self, name: str) -> bytes | None:
        try:
            return self._objects.read(_head(name), _LARGEST_HEADER)
        except NoObjectError:
            return None

    def _unused_bodies(self, heads: Mapping[str, bytes]) -> list[Body]:
        """None while a head is damaged: nobody knows which one it means."""
        try:
            named = {self._split(name, head)[1] for name, head in heads.items()}
        except BrokenError:
            return []
        return [body for body in _bodies(b"\n".join(self._objects.entries(_BODIES).values())) if body not in named]

    def loss(self, name: str) -> str:  # noqa: ARG002 - there never is any
        """What was acknowledged is on the disks of all replicas."""
        return ""

    def lock_volume(self, name: str, *, shared: bool = False, patience: float = 0.0) -> HeldLock:
        if not self.exists(name):
            raise self._no_such(name)
        if self._store_lock is None and self._is_being_renamed(name):
            with self.locked():
                """Whoever takes the store's lock completes a rename."""
        lock = self._locks.take(f"lock.{name}", name, shared=shared, patience=patience)
        if not self.exists(name):
            lock.release()
            # As we left it: a new volume may have got the name, and its holder the lock.
            with contextlib.suppress(NoObjectError, ChangedObjectError):
                self._objects.apply(lock.key, Change().at_version(lock.version).remove(), force=True)
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

    def remove_layer(self, source: Source, *, patience: float = math.inf) -> int:
        """In portions, each of which is struck from the index: whoever goes on later need not begin anew."""
        deadline = time.monotonic() + patience
        freed, left = 0, indexes_of(indexed(self._objects, source))
        while some := list(islice(left, _PORTION)):
            if time.monotonic() >= deadline:
                return freed
            freed += self._free(source, some)
            struck = Change().write(some[0], bytes(some[-1] - some[0] + 1))
            self._objects.apply(index_key(source), struck, force=True)
        self._objects.remove(index_key(source))
        self._objects.drop_entry(LAYERS, stem_of(source))
        return freed

    def free_blocks(self, source: Source, keep: int) -> int:
        gone = indexed(self._objects, source) & ~keep
        freed = self._free(source, indexes_of(gone))
        left = runs_of(gone)
        while runs := list(islice(left, _MOST_RUNS)):
            change = Change()
            for first, end in runs:
                change.write(first, bytes(end - first))
            self._objects.apply(index_key(source), change, force=True)
        return freed

    def _free(self, source: Source, blocks: Iterable[int]) -> int:
        def free(index: int) -> int:
            size = self._block_used(source, index)
            return size if self._objects.remove(data_key(source, index)) else 0

        return sum(self._objects.parallel(free, blocks))

    def used(self, source: Source) -> int:
        """Each block tells its own. Of many, some are asked, and the rest is taken to be alike."""

        def used(index: int) -> int:
            return self._block_used(source, index)

        sample: Sample[None] = Sample(_SAMPLE)
        sample.add(None, indexed(self._objects, source))
        return sample.sum_of(self._objects.parallel(used, (index for _, index in sample.chosen)))

    def stored(self) -> Stored:
        """An index is read for each layer; asking each of its blocks would take as long as a collection of them all."""
        sources = list(self.layers())
        blocks: Sample[Source] = Sample(_LARGE_SAMPLE)
        for source, bits in zip(sources, self._objects.parallel(self._indexed, sources), strict=True):
            blocks.add(source, bits)
        occupied = blocks.sum_of(self._objects.parallel(lambda one: self._block_used(*one), blocks.chosen))
        contents = 0
        for shard in range(_SHARDS):
            entries = self._objects.entries(_shard(bytes([shard])))
            digests = [bytes.fromhex(entry) for entry, value in entries.items() if not _GONE.fullmatch(value)]
            asked = digests[:: max(1, len(digests) // _SAMPLE)]
            sizes = sum(self._objects.parallel(self.content_used, asked))
            occupied += sizes * len(digests) // max(1, len(asked))
            contents += len(digests)
        return Stored(occupied, contents)

    def _indexed(self, source: Source) -> int:
        return indexed(self._objects, source)

    def _block_used(self, source: Source, index: int) -> int:
        try:
            owned, zeros = read_pages(self._objects, data_key(source, index)) or (0, 0)
        except BrokenError:
            return BLOCK
        return (owned & ~zeros).bit_count() * PAGE

    # Content. The object's version tells whether it was touched.

    def put_content(self, digest: bytes, data: memoryview) -> bool:
        key = _content(digest)
        while True:
            with contextlib.suppress(NoObjectError, ChangedObjectError):
                version = self._objects.version(key)
                self._objects.apply(key, Change().at_version(version).set_attribute("touched", b""))
                return False
            self.enter_content(digest)
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
                value = found[digest.hex()]
                if version is not None or not _may_come(value):
                    yield digest, (version, value)

    def walk_contents(self) -> Iterator[tuple[bytes, bool]]:
        """One question to the cluster for hundreds of objects, where `contents` asks about each."""
        entered = Digests()
        for shard in range(_SHARDS):
            for entry in self._objects.entries(_shard(bytes([shard]))):
                entered.add(bytes.fromhex(entry))
        for key in self._objects.keys():  # noqa: SIM118 - it is no mapping
            if found := _CONTENT.fullmatch(key):
                digest = bytes.fromhex(found[1])
                yield digest, digest in entered or self._is_entered(digest)

    def _is_entered(self, digest: bytes) -> bool:
        """Of a block that may have come, or gone, since the tables were read: as long as it is there, its entry is."""
        is_there = self._content_version(digest) is not None
        return not is_there or self._objects.entry(_shard(digest), digest.hex()) is not None

    def enter_content(self, digest: bytes) -> None:
        self._objects.put_entry(_shard(digest), digest.hex(), token().encode())

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
        """The entry stays for a day, for one who died, or had no answer, may have sent the block before: it may come
        at any time, shut out or not, and a collection must find it then.
        """
        assert isinstance(version, tuple)
        at, value = version
        freed = self.content_used(digest)
        if at is None and freed:
            return 0
        try:
            if at is not None:
                self._objects.apply(_content(digest), Change().at_version(at).remove(), force=True)
        except NoObjectError:
            freed = 0
        except ChangedObjectError:
            return 0
        # One who is about to put it again has changed the entry.
        if at is None and _GONE.fullmatch(value):
            self._objects.drop_entry(_shard(digest), digest.hex(), value)
        else:
            self._objects.replace_entry(_shard(digest), digest.hex(), value, b"gone %d" % time.time())
        return freed


class _Beginning:
    """The first bytes of a map, read as they are asked for."""

    def __init__(self, objects: Objects, data: bytes, body: Body | None) -> None:
        self._objects = objects
        self._data = data
        self._body = body
        self._at = 0

    def read(self, length: int) -> bytes:
        found, self._data = self._data[:length], self._data[length:]
        while len(found) < length and self._body and self._at < self._body.parts * PART:
            part, offset = divmod(self._at, PART)
            piece = self._objects.read(self._body.key(part), min(length - len(found), PART - offset), offset)
            if not piece:
                break
            found += piece
            self._at += len(piece)
        return found


def _elsewhere(body: Body, header: bytes) -> bytes:
    where = str(body).encode()
    return b"SNFBODY\n%s %08x\n%s" % (where, zlib.crc32(where), header)


def _bodies(note: bytes) -> list[Body]:
    return [Body(generation.decode(), int(parts)) for generation, parts in _NOTE.findall(note)]


def _head(name: str) -> str:
    return f"head.{name}"


def _content(digest: bytes) -> str:
    return f"content.{digest.hex()}"


def _may_come(entry: bytes) -> bool:
    """Whether a block that is not there may have been sent so late that it comes yet."""
    gone = _GONE.fullmatch(entry)
    return gone is not None and abs(time.time() - int(gone[1])) < FENCE_SECONDS


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
    import uuid

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
        raise NoStoreError(path=spec, reason=f"the object {_HEADER!r} is missing") from None
    except (ValueError, RecursionError) as error:
        raise BadStoreError(path=spec, reason=f"the object {_HEADER!r} can't be read: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") != KIND or facts.get("version") != VERSION:
        raise BadStoreError(path=spec, reason=f"its version is not {VERSION}")

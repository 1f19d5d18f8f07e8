# SPDX-License-Identifier: BSD-2-Clause
"""A store in RADOS, Ceph's objects: the engine for clusters. No file system, no daemon of ours, nothing to fail over.

All objects are in one namespace of one replicated pool. What an object is, its name says:

    store                       {"kind", "version", "uuid"}: without it, or with another version, nothing is touched
    store.lock                  the lock of the whole store; beside it, the rename that is under way
    names                       table: the names there may be; a name is entered before its head is made
    head.NAME                   the map, or its header and where its body is; its attribute `info` has the facts; all
                                change at once
    body.*                      the body of a large map (rados_bodies.py)
    bodies                      table: the generations that several heads may name, entered before a second one does
    only.WORK                   a lock for work of which there is one at a time
    lock.NAME, wanted.NAME      the lock (rados_locks.py); the other side of a migration asks for it
    layers, index.*, data.*     the pages (rados_layers.py)
    content.*, contents.*       content blocks, and tables of them (rados_contents.py)

So everything is found by its name or in a table, and nothing needs a walk over the pool, which only a check and a scrub
do. What a death may leave are entries in tables without an object, and bodies that no head names, but a table does: the
entry in `names` says which bodies were made for that name, and those in `bodies` are looked for in all heads when the
store is tidied.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from extstorage import maps, rados_bodies, rados_space
from extstorage.errors import (
    AlreadyThereError,
    BadStoreError,
    BrokenError,
    BusyError,
    ForeignPlaceError,
    HeldError,
    NoStoreError,
    NoSuchVolumeError,
)
from extstorage.maps import HEADER, Source, VolumeMap
from extstorage.names import BLOCK
from extstorage.rados_bodies import Beginning, Body, bodies_in, head_of, new_body, note_of, read_part, split_head
from extstorage.rados_contents import RadosContents
from extstorage.rados_errors import ChangedObjectError, NoAttributeError, NoObjectError, ReplacedMapError
from extstorage.rados_layers import LAYERS, make_layer, open_layer, source_of
from extstorage.rados_locks import HeldLock, Identity, Locks
from extstorage.rados_pool import Change, Client, Objects
from extstorage.scans import Scan, scan_of
from extstorage.specs import RadosSpec
from extstorage.store import Info, Layer, R, Space, Stored, T, decode_info, encode_info

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

_LARGEST_HEADER = 4096
_TRIES = 5


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
        self._contents = RadosContents(lambda: self._objects)
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
                parts = body.read(self._objects) if body else ()
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
                    yield read_part(self._objects, key)
                except NoObjectError:
                    raise ReplacedMapError(store=self.title, name=name) from None

        return Scan(data, self._path(name), pieces, body)

    def read_heads(self, name: str) -> VolumeMap:
        for _ in range(_TRIES):
            data, body = self._split(name, self._read_head(name))
            with contextlib.suppress(NoObjectError):
                return maps.decode_heads(Beginning(self._objects, data, body).read, self._path(name))
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
        try:
            return split_head(head)
        except ValueError:
            reason = "it is not a map, and does not say where the map is"
            raise BrokenError(path=self._path(name), reason=reason) from None

    def write_map(self, name: str, volume_map: VolumeMap, packed: bytes = b"") -> None:
        key = _head(name)
        try:
            head, version = self._objects.read_versioned(key, _LARGEST_HEADER)
        except NoObjectError:
            raise self._no_such(name) from None
        encoded = maps.encode(volume_map, packed)
        old = self._body_of(name, head)
        if old or len(encoded) > rados_bodies.INLINE:
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
        if len(encoded) <= rados_bodies.INLINE:
            return encoded
        data = memoryview(encoded)[HEADER:]
        body = new_body(len(data))
        # On record before it is made, and while the other still is there, so that both are found if this process dies.
        self._note(name, (*old, body))
        body.write(self._objects, data)
        return head_of(body, encoded[:HEADER])

    def _note(self, name: str, bodies: Iterable[Body]) -> None:
        self._objects.put_entry(_NAMES, name, note_of(bodies))

    def _noted(self, name: str) -> list[Body]:
        """The bodies that were made for that name; they may be gone."""
        return bodies_in(self._objects.entry(_NAMES, name) or b"")

    def _release(self, bodies: list[Body]) -> None:
        """Remove bodies that the head does not name any more. Others may name what is shared: `tidy` looks for them."""
        for body in bodies:
            if self._objects.entry(_BODIES, body.generation) is None:
                body.remove(self._objects)

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
            copy = head_of(body, maps.new_header(data, head, self._path(origin)))
            self._objects.put_entry(_BODIES, body.generation, note_of([body]))
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
            body.remove(self._objects)
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
        return [body for body in bodies_in(b"\n".join(self._objects.entries(_BODIES).values())) if body not in named]

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
        try:
            if self.exists(name):
                return lock
        except BaseException:
            lock.release()
            raise
        lock.release()
        # As we left it: a new volume may have got the name, and its holder the lock.
        with contextlib.suppress(NoObjectError, ChangedObjectError):
            self._objects.apply(lock.key, Change().at_version(lock.version).remove(), force=True)
        raise self._no_such(name)

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
            return self._foreign_block(source.owner) or self._contents.block(source.owner)
        return make_layer(self._objects, source) if writable else open_layer(self._objects, source)

    def _foreign_block(self, digest: bytes) -> Layer | None:
        """Ours is looked for first, and only if there may be another: that is a question to the cluster."""
        if self.foreign is None or self._contents.version(digest) is not None:
            return None
        return self.foreign(digest)

    def layers(self, *, begun: bool = False) -> Iterator[Source]:  # noqa: ARG002 - entered before anything is made
        for stem in sorted(self._objects.entries(LAYERS)):
            with contextlib.suppress(ValueError):
                yield source_of(stem)

    def remove_layer(self, source: Source, *, patience: float = math.inf) -> int:
        return rados_space.remove_layer(self._objects, source, patience)

    def free_blocks(self, source: Source, keep: int) -> int:
        return rados_space.free_blocks(self._objects, source, keep)

    def used(self, source: Source) -> int:
        return rados_space.used(self._objects, source)

    def stored(self) -> Stored:
        return rados_space.stored(self._objects, list(self.layers()), self._contents)

    # Content.

    def put_content(self, digest: bytes, data: memoryview) -> bool:
        return self._contents.put(digest, data)

    def sync_contents(self) -> None:
        """Each was durable at once."""

    def contents(self) -> Iterator[tuple[bytes, object]]:
        return self._contents.versions()

    def walk_contents(self) -> Iterator[tuple[bytes, bool]]:
        return self._contents.walk()

    def enter_content(self, digest: bytes) -> None:
        self._contents.enter(digest)

    def content_used(self, digest: bytes) -> int:
        return self._contents.used(digest)

    def remove_content(self, digest: bytes, version: object) -> int:
        return self._contents.remove(digest, version)


def _head(name: str) -> str:
    return f"head.{name}"


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
            raise ForeignPlaceError(path=spec, example=repr(foreign[:100]))
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

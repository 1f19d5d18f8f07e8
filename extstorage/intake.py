# SPDX-License-Identifier: BSD-2-Clause
"""Taking a whole disk into a store by content: bounded, resumable, and safe from collection while it lasts.

The blocks of a disk that is being taken in are named by a *pending map*, a volume of its own, before they are put: so
no collection takes them, and its lock keeps a second intake out. It makes the work resumable, too: its facts tell from
what it was made, and up to which block everything is durable.

A map is written as a whole. So names go to a second, small map first, which is written for each batch; what that has
gathered goes over to the pending map at the next checkpoint, under the store's lock: no collection's last look finds
names in neither. Checkpoints come further apart as the image grows, so that both maps together cost 8 N^1.5 bytes for N
blocks: 1 GB for 1 TiB, and less than 1 % of the largest image.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from math import isqrt

from extstorage import catalog, maps
from extstorage.content import Named, Pipeline
from extstorage.errors import AlreadyThereError, BadSizeError, BrokenError, FullStoreError, NoSuchVolumeError
from extstorage.identity import myself
from extstorage.maps import DIGEST, VolumeMap
from extstorage.names import BLOCK, LARGEST, MEBIBYTE, blocks_of, check_size, new_id
from extstorage.progress import Progress
from extstorage.sources import DiskSource
from extstorage.store import Info, Store
from ganeti_plugin.errors import Error, InputError
from ganeti_plugin.log import info

#: The facts of a pending map.
_SOURCE = "source"
_DONE = "done"
_MAP = "map"

#: Blocks that are stored at a time, and that are read ahead of them: 230 MiB of memory.
BATCH = 16
AHEAD = 8

#: Bytes after which a resumed intake need not begin again, up to 32 GiB; see `_is_due` for what comes after.
CHECKPOINT = 2 << 30

Digests = Sequence[bytes | None]


@contextlib.contextmanager
def taken_in(store: Store, pending: str, source: DiskSource, progress: Progress) -> Iterator[tuple[int, Digests]]:
    """Take in the source; yields its size and the names of its blocks, all of them durable and safe inside `with`.

    The pending map goes when the block ends, and when the source is refused. It stays, for the next intake of the same
    source to go on, when anything else went wrong. Raises HeldError while somebody else works on it.
    """
    with _locked(store, pending, source) as intake:
        try:
            intake.run(source, progress)
            source.check()
            store.sync_contents()
            assert source.size is not None, "a source knows its size at its end"
            size = check_size(source.size)
            yield size, intake.digests(size)
        except InputError:
            _remove(store, pending)
            raise
        except BaseException:
            if not source.identity:
                _remove(store, pending)
            raise
        _remove(store, pending)


def clear(store: Store, pending: str) -> None:
    """Remove what an intake left that nobody will go on with. Raises HeldError while it runs."""
    if store.exists(pending) and is_pending(store, pending):
        with catalog.held(store, pending):
            _remove(store, pending)


def recent(pending: str) -> str:
    """The second map."""
    return pending.replace("-", ".", 1)


def _remove(store: Store, pending: str) -> None:
    """Both at once, for who looks with the store's lock; the second never is there alone."""
    with store.locked():
        if is_pending(store, recent(pending)):
            store.remove(recent(pending))
        store.remove(pending)


@contextlib.contextmanager
def _locked(store: Store, pending: str, source: DiskSource) -> Iterator[_Intake]:
    names = pending, recent(pending)
    with store.locked():
        missing = [name for name in names if not store.exists(name)]
        for name in names:
            if name not in missing and not is_pending(store, name):
                raise AlreadyThereError(name=name, store=store.title, what="volume, snapshot or image")
        for name in missing:
            facts = Info(created=time.time(), properties={_SOURCE: source.identity, _DONE: "0"})
            store.create(name, maps.empty(BLOCK, new_id()), facts)
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(catalog.held(store, name)).record(myself())
        yield _resumed(store, pending, source)


def is_pending(store: Store, name: str) -> bool:
    """Properties of images, which their clones have too, are in upper case: nobody's data is taken for an intake's."""
    try:
        return may_be_pending(store.read_info(name)) and not store.read_heads(name).read_only
    except (BrokenError, NoSuchVolumeError):
        return False


def may_be_pending(facts: Info) -> bool:
    """Whether they are those of a pending map, if a volume has them."""
    return _DONE in facts.properties


def _resumed(store: Store, pending: str, source: DiskSource) -> _Intake:
    """What an interrupted intake of the same source left, or a fresh start."""
    facts = store.read_info(pending)
    with contextlib.suppress(BrokenError):
        old = store.read_map(pending)
        done = _done(facts.properties, source, old)
        named = maps.cut(old, done)
        missing = _first_missing(store, named)
        if missing is not None:
            named, done = maps.cut(named, missing), missing
        if done:
            info("%s: goes on after %d MiB", pending, done * BLOCK >> 20)
            return _Intake(store, pending, source.identity, named, done)
    empty = maps.empty(BLOCK, new_id())
    store.write_info(pending, facts._replace(properties={_SOURCE: source.identity, _DONE: "0"}))
    return _Intake(store, pending, source.identity, empty, 0)


def _done(facts: Mapping[str, str], source: DiskSource, old: VolumeMap) -> int:
    """The blocks that the map surely has; a map that is older than the facts, such as a repaired one, lacks some."""
    owner, _, epoch = facts.get(_MAP, "").partition(":")
    done = facts.get(_DONE, "")
    if not source.identity or source.identity != facts.get(_SOURCE) or owner != old.owner.hex():
        return 0
    return int(done) if epoch.isdecimal() and int(epoch) <= old.epoch and done.isdecimal() else 0


def _first_missing(store: Store, named: VolumeMap) -> int | None:
    """The first block whose content is not there: somebody may have removed what was found to be damaged."""
    numbers = [number for number in range(named.blocks) if named.layers(number)]
    there = store.each(lambda number: bool(store.content_used(named.layers(number)[0].owner)), numbers)
    return next((number for number, is_there in zip(numbers, there, strict=True) if not is_there), None)


class _Intake:
    """The pending map as it grows."""

    def __init__(self, store: Store, pending: str, identity: str, volume_map: VolumeMap, done: int) -> None:
        self._store = store
        self._pending = pending
        self._identity = identity
        #: Names up to the last checkpoint, and what came since: as a map, whose blocks are in no order, and by block.
        self._map = volume_map
        self._recent = maps.empty(BLOCK, new_id())
        self._new: dict[int, bytes] = {}
        self._naming = threading.Lock()
        self._done = self._kept = done

    def run(self, source: DiskSource, progress: Progress) -> None:
        try:
            self._absorb(source, progress)
        except (Exception, KeyboardInterrupt):
            # What was stored gets its names: for the next intake, or else for a collection.
            with contextlib.suppress(Error, OSError):
                self._keep()
            raise

    def _absorb(self, source: DiskSource, progress: Progress) -> None:
        with Pipeline(BATCH, AHEAD) as pipeline, self._full_is_said():
            blocks = source.blocks(self._done, pipeline.take)
            for named in pipeline.absorb(blocks, self._publish, self._store.put_content):
                self._done = named.number + 1
                if source.size:
                    progress(min(99, self._done * 100 // blocks_of(source.size)))
                else:
                    progress(None, f" so far: {self._done * BLOCK // MEBIBYTE} MiB")
                if self._is_due():
                    self._keep()

    def _is_due(self) -> bool:
        """With distances that grow with the root of what is done, both maps are written about as much."""
        usual = CHECKPOINT // BLOCK
        return self._done - self._kept >= max(usual, isqrt(self._done * usual) // 4)

    @contextlib.contextmanager
    def _full_is_said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise FullStoreError(store=self._store.title) from None

    def _publish(self, batch: Sequence[Named]) -> None:
        """A map names the blocks before they are put."""
        digests = {named.number: named.digest for named in batch if named.digest is not None}
        if not digests:
            return
        size = (max(digests) + 1) * BLOCK
        if size > LARGEST:
            raise BadSizeError(size=size, reason=f"it must be at most {LARGEST} bytes")
        with self._naming:
            self._new |= digests
            first = len(self._recent.digests) // DIGEST
            size = (first + len(digests)) * BLOCK
            self._recent = maps.with_new_content(self._recent, size, dict(enumerate(digests.values(), first)))
            self._store.write_map(recent(self._pending), self._recent)

    def _keep(self) -> None:
        """From here on, a resumed intake goes on."""
        self._store.sync_contents()
        with self._naming:
            self._gather()
            self._map = self._map._replace(epoch=self._map.epoch + 1)
            with self._store.locked():
                self._store.write_map(self._pending, self._map)
            facts = self._store.read_info(self._pending)
            version = f"{self._map.owner.hex()}:{self._map.epoch}"
            properties = {_SOURCE: self._identity, _DONE: str(self._done), _MAP: version}
            self._store.write_info(self._pending, facts._replace(properties=properties))
        self._kept = self._done

    def _gather(self) -> None:
        """The names that came since go into the map; the next batch begins the second one anew."""
        if self._new:
            size = max(self._map.size, (max(self._new) + 1) * BLOCK)
            self._map = maps.with_new_content(self._map, size, self._new)
            self._new = {}
            self._recent = maps.empty(BLOCK, self._recent.owner)

    def digests(self, size: int) -> Digests:
        """The name of each block; None for a hole."""
        self._gather()
        found = [self._map.layers(index) for index in range(min(self._map.blocks, blocks_of(size)))]
        return [layers[0].owner if layers else None for layers in found] + [None] * (blocks_of(size) - len(found))

# SPDX-License-Identifier: BSD-2-Clause
"""Taking a whole disk into a store by content: bounded, resumable, and safe from collection while it lasts.

The blocks of a disk that is being taken in are named by a *pending map*, a volume of its own, before they are put: so
no collection takes them, and its lock keeps a second intake out. It makes the work resumable, too: its facts tell from
what it was made, and up to which block everything is durable.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence

from extstorage import maps
from extstorage.content import Named, Pipeline
from extstorage.errors import AlreadyThereError, BadSizeError, BrokenError, FullStoreError
from extstorage.identity import myself
from extstorage.maps import VolumeMap
from extstorage.names import BLOCK, LARGEST, blocks_of, check_size, new_id
from extstorage.sources import Source
from extstorage.store import Info, Store
from ganeti_plugin.errors import Error, InputError
from ganeti_plugin.log import info

#: The facts of a pending map.
_SOURCE = "source"
_DONE = "done"

#: Blocks that are stored at a time, and that are read ahead of them: 230 MiB of memory.
BATCH = 16
AHEAD = 8

#: Bytes after which a resumed intake need not begin again.
CHECKPOINT = 2 << 30

#: Called with per cents.
Progress = Callable[[int], None]

Digests = Sequence[bytes | None]


@contextlib.contextmanager
def taken_in(store: Store, pending: str, source: Source, progress: Progress) -> Iterator[tuple[int, Digests]]:
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
            store.remove(pending)
            raise
        except BaseException:
            if not source.identity:
                store.remove(pending)
            raise
        store.remove(pending)


def clear(store: Store, pending: str) -> None:
    """Remove what an intake left that nobody will go on with. Raises HeldError while it runs."""
    if store.exists(pending) and is_pending(store, pending):
        lock = store.lock_volume(pending, patience=store.patience)
        try:
            store.remove(pending)
        finally:
            lock.release()


@contextlib.contextmanager
def _locked(store: Store, pending: str, source: Source) -> Iterator[_Intake]:
    with store.locked():
        if not store.exists(pending):
            facts = Info(created=time.time(), properties={_SOURCE: source.identity, _DONE: "0"})
            store.create(pending, maps.empty(BLOCK, new_id()), facts)
        elif not is_pending(store, pending):
            raise AlreadyThereError(name=pending, store=store.title, what="volume, snapshot or image")
    lock = store.lock_volume(pending, patience=store.patience)
    try:
        lock.record(myself())
        yield _resumed(store, pending, source)
    finally:
        lock.release()


def is_pending(store: Store, name: str) -> bool:
    """Properties of images, which their clones have too, are in upper case: nobody's data is taken for an intake's."""
    try:
        return _DONE in store.read_info(name).properties and not store.read_heads(name).read_only
    except BrokenError:
        return False


def _resumed(store: Store, pending: str, source: Source) -> _Intake:
    """What an interrupted intake of the same source left, or a fresh start."""
    facts = store.read_info(pending)
    done = facts.properties.get(_DONE, "")
    if source.identity and source.identity == facts.properties.get(_SOURCE) and done.isdecimal() and int(done):
        with contextlib.suppress(BrokenError):
            old = store.read_map(pending)
            info("%s: goes on after %d MiB", pending, int(done) * BLOCK >> 20)
            return _Intake(store, pending, source.identity, maps.cut(old, int(done)), int(done))
    empty = maps.empty(BLOCK, new_id())
    store.write_info(pending, facts._replace(properties={_SOURCE: source.identity, _DONE: "0"}))
    return _Intake(store, pending, source.identity, empty, 0)


class _Intake:
    """The pending map as it grows."""

    def __init__(self, store: Store, pending: str, identity: str, volume_map: VolumeMap, done: int) -> None:
        self._store = store
        self._pending = pending
        self._identity = identity
        self._map = volume_map
        self._done = self._kept = done

    def run(self, source: Source, progress: Progress) -> None:
        try:
            self._absorb(source, progress)
        except (Exception, KeyboardInterrupt):
            # What was stored gets its names: for the next intake, or else for a collection.
            with contextlib.suppress(Error, OSError):
                self._keep()
            raise

    def _absorb(self, source: Source, progress: Progress) -> None:
        with Pipeline(BATCH, AHEAD) as pipeline, self._full_is_said():
            blocks = source.blocks(self._done, pipeline.take)
            for named in pipeline.absorb(blocks, self._publish, self._store.put_content):
                self._done = named.number + 1
                if source.size:
                    progress(min(99, self._done * 100 // blocks_of(source.size)))
                if (self._done - self._kept) * BLOCK >= CHECKPOINT:
                    self._keep()

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
        size = max(self._map.size, (max(digests) + 1) * BLOCK)
        if size > LARGEST:
            raise BadSizeError(size=size, reason=f"it must be at most {LARGEST} bytes")
        self._map = maps.with_new_content(self._map, size, digests)
        self._store.write_map(self._pending, self._map)

    def _keep(self) -> None:
        """From here on, a resumed intake goes on."""
        self._store.sync_contents()
        facts = self._store.read_info(self._pending)
        self._store.write_info(
            self._pending, facts._replace(properties={_SOURCE: self._identity, _DONE: str(self._done)})
        )
        self._kept = self._done

    def digests(self, size: int) -> Digests:
        """The name of each block; None for a hole."""
        found = [self._map.layers(index) for index in range(min(self._map.blocks, blocks_of(size)))]
        return [layers[0].owner if layers else None for layers in found] + [None] * (blocks_of(size) - len(found))

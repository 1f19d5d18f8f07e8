# SPDX-License-Identifier: BSD-2-Clause
"""The data path of one volume: reads, writes, zeroes and discards, page by page, over a flat map.

What the volume writes goes into the layer of its current epoch. A page there is *owned*; any other page comes from the
frozen layers that the map names, or is a hole. Nothing is copied up, except a block that already has four layers.

Order is everything here:

- a page is marked owned after its data was handed to the store, and acknowledged after that;
- the mark is kept twice: at once under /run (`run_pages.py`: it survives this process), and in the store when the
  client flushes, after the data was synced. So no death leaves a page that is owned and not there. A store with
  `atomic_pages` changes data and mark in one operation instead, and a flush has nothing left to do;
- a page that is not yet owned is written under its block's lock, so that a part of it can be filled up from below.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from typing import NamedTuple

from extstorage.direct_reads import Allowed
from extstorage.errors import BrokenError
from extstorage.maps import DEPTH, Source, VolumeMap
from extstorage.names import BLOCK, PAGE
from extstorage.pages import FULL, PAGES, full_mask, mask_of, runs
from extstorage.run_pages import RunPages
from extstorage.store import Layer, Store

#: Locks for all blocks together: as many writers of new pages as a server has threads meet seldom.
_STRIPES = 64

#: Layers that stay open, each with two descriptors in a files store, and blocks whose layers are remembered.
_OPEN_LAYERS = 1024
_CACHED_BASES = 16384

#: Extents of one answer: NBD clients ask again for the rest.
_MOST_EXTENTS = 4096

#: Errors of a system call that did nothing: this kernel, or the sandbox, does not have it; or not now.
_NOT_BEGUN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.EINTR, errno.ENOMEM)

Base = tuple[tuple[Source, int], ...]


class Extent(NamedTuple):
    length: int
    hole: bool


class Volume:
    """One volume at one map. Who may call what when is the business of `session.py`.

    `cached` means that nobody else can change the volume: owned pages are kept in memory. Otherwise each read asks
    the store, and none goes by `direct`.
    """

    def __init__(
        self,
        store: Store,
        volume_map: VolumeMap,
        *,
        cached: bool,
        run: RunPages | None = None,
        direct: Allowed | None = None,
    ) -> None:
        self.map = volume_map
        self._store = store
        self._run = run
        self._cached = cached
        self._direct = direct if cached else None
        self._layers: dict[Source, Layer] = {}
        self._current: Layer | None = None
        self._bases: dict[int, Base] = {}
        self._block_locks = tuple(threading.Lock() for _ in range(_STRIPES))
        self._state = threading.Lock()
        self._flushing = threading.Lock()
        self._owned: dict[int, int] = {}
        self._unread: set[int] = set()
        self._unsaved: set[int] = set()
        self._unsynced = False
        self._failure: Exception | None = None
        #: Blocks that `newly_owned` will tell of, once `owned` was asked.
        self._news: set[int] | None = None
        if cached:
            self._load_owned()

    def _load_owned(self) -> None:
        """What the store says, plus what a predecessor that died had marked under /run but not flushed."""
        existing = self._existing_current()
        for index, pages in (existing.present() if existing else {}).items():
            if pages is None:
                self._unread.add(index)
            else:
                self._owned[index] = pages
        if self._store.atomic_pages:
            return
        # A predecessor that died may have overwritten pages that it owned already: data without a mark to tell.
        self._unsynced = existing is not None
        if self._run is None:
            return
        saved = dict(self._owned)
        for index, bits in self._run.load().items():
            both = saved.get(index, 0) | bits
            if both != saved.get(index):
                self._owned[index] = both
                self._unsaved.add(index)
        for index, bits in saved.items():
            self._run.set(index, self._owned.get(index, bits))

    def _existing_current(self) -> Layer | None:
        if self._current is None:
            try:
                self._current = self._store.layer(self.map.current)
            except BrokenError:
                return None
        return self._current

    def _writable_current(self) -> Layer:
        """The layer of the current epoch; made at the first write."""
        layer = self._layers.get(self.map.current)
        if layer is None:
            with self._state:
                layer = self._layers.get(self.map.current)
                if layer is None:
                    layer = self._store.layer(self.map.current, writable=True)
                    self._current = self._layers[self.map.current] = layer
        return layer

    def _layer(self, source: Source) -> Layer:
        layer = self._layers.get(source)
        if layer is None:
            if source == self.map.current and self._current is not None:
                return self._current
            layer = self._store.layer(source)
            with self._state:
                # An evicted layer closes when the last request that uses it lets go.
                while len(self._layers) >= _OPEN_LAYERS:
                    oldest = next((key for key in self._layers if key != self.map.current), None)
                    if oldest is None:
                        break
                    del self._layers[oldest]
                self._layers[source] = layer
        return layer

    # Which page comes from where.

    def _owned_pages(self, index: int) -> int:
        owned = self._owned.get(index)
        if owned is not None:
            return owned
        if not self._cached:
            layer = self._existing_current()
            return layer.load_pages(index) if layer else 0
        # Known is what is not unread, so this is looked at last: another thread may just have learnt it.
        return self._learn(index) if index in self._unread else self._owned.get(index, 0)

    def _learn(self, index: int) -> int:
        """Read the pages of a block that the store has, but has not told yet."""
        layer = self._existing_current()
        pages = layer.load_pages(index) if layer else 0
        with self._state:
            # Another thread may have been faster, and may have written since.
            if index in self._unread:
                self._owned[index] = pages
                self._unread.discard(index)
                self._tell(index)
            return self._owned.get(index, 0)

    def _learn_deep(self) -> None:
        """Read what `owned` needs; a copy is looked through, because requests may run."""
        for index in list(self._unread):
            if self.map.depth(index) == DEPTH:
                self._learn(index)

    def _base(self, index: int) -> Base:
        """The frozen layers of a block, each with the pages that are seen of it. Immutable, so it may be cached."""
        base = self._bases.get(index)
        if base is None:
            found = []
            covered = 0
            for source in self.map.layers(index):
                bits = self._layer(source).load_pages(index)
                if not bits:
                    path = f"block {index} of layer {source.owner.hex()}.{source.epoch}"
                    raise BrokenError(path=path, reason="it is missing")
                if bits & ~covered:
                    found.append((source, bits & ~covered))
                covered |= bits
            base = tuple(found)
            if len(self._bases) >= _CACHED_BASES:
                self._bases.clear()
            self._bases[index] = base
        return base

    def _pieces(self, index: int, first: int, end: int, owned: int) -> Iterator[tuple[int, int, Source | None]]:
        """The pages `first` to `end` - 1 of a block as runs: (first page, end page, source or None for a hole)."""
        wanted = mask_of(first, end)
        if owned & wanted == wanted:
            yield first, end, self.map.current
            return
        layers = [(source, bits & ~owned) for source, bits in self._base(index)]
        if owned & wanted:
            layers.append((self.map.current, owned))
        while first < end:
            for source, bits in layers:
                if bits >> first & 1:
                    stop = next(runs(bits, first, end))[1]
                    yield first, stop, source
                    break
            else:
                present = 0
                for _, bits in layers:
                    present |= bits
                stop = next(runs(present, first, end))[1]
                yield first, stop, None
            first = stop

    @staticmethod
    def _cut(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """A range of the volume as (block, offset in it, length)."""
        while length:
            index, inside = divmod(offset, BLOCK)
            part = min(length, BLOCK - inside)
            yield index, inside, part
            offset += part
            length -= part

    # Reading.

    def readinto(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from `offset`."""
        index, inside = divmod(offset, BLOCK)
        if inside + len(buffer) <= BLOCK:
            self._read_block(index, inside, buffer)
            return
        for index, inside, length in self._cut(offset, len(buffer)):
            self._read_block(index, inside, buffer[:length])
            buffer = buffer[length:]

    def _read_block(self, index: int, offset: int, buffer: memoryview) -> None:
        if self._current is not None and self._owned.get(index) == FULL:
            # The most frequent case by far, and each request holds up the other threads as long as it is in Python.
            self._current.readinto(index, offset, buffer)
            self._offer(index)
            return
        end = offset + len(buffer)
        owned = self._owned_pages(index)
        wanted = mask_of(offset // PAGE, -(-end // PAGE))
        if owned & wanted == wanted:
            self._layer(self.map.current).readinto(index, offset, buffer)
            return
        if not owned & wanted:
            for layer, bits in self._base(index):
                if bits & wanted == wanted:
                    self._layer(layer).readinto(index, offset, buffer)
                    self._offer(index)
                    return
        pieces = self._pieces(index, offset // PAGE, -(-end // PAGE), owned)
        for first, stop, source in pieces:
            start, finish = max(offset, first * PAGE), min(end, stop * PAGE)
            part = buffer[start - offset : finish - offset]
            if source is None:
                part[:] = bytes(len(part))
            else:
                self._layer(source).readinto(index, start, part)

    def _offer(self, index: int) -> None:
        """The next read of the block need not come here, if it is all in one object."""
        if self._direct is not None:
            self._direct.offer(index, self._plain_object)

    def _plain_object(self, index: int) -> str:
        if index in self._unread:
            return ""
        owned = self._owned.get(index, 0)
        if owned == FULL:
            return self._current.plain_object(index) if self._current else ""
        # Only what is open: this is no time for a question to the store.
        base = () if owned else self._bases.get(index, ())
        layer = self._layers.get(base[0][0]) if base and base[0][1] == FULL else None
        return layer.plain_object(index) if layer else ""

    def _retracted(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Around the moment from which on the block is seen to be another one."""
        return self._direct.forgetting(index) if self._direct is not None else contextlib.nullcontext()

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What is allocated, from `offset`; may stop early, but never before the first extent."""
        found: list[Extent] = []
        for index, inside, part in self._cut(offset, length):
            for extent in self._block_extents(index, inside, part):
                if found and found[-1].hole == extent.hole:
                    found[-1] = Extent(found[-1].length + extent.length, extent.hole)
                else:
                    found.append(extent)
            if len(found) > _MOST_EXTENTS:
                break
        return found

    def _block_extents(self, index: int, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        pieces = self._pieces(index, offset // PAGE, -(-end // PAGE), self._owned_pages(index))
        for first, stop, source in pieces:
            start, finish = max(offset, first * PAGE), min(end, stop * PAGE)
            if source is None:
                yield Extent(finish - start, True)
            else:
                for run, hole in self._layer(source).holes(index, start, finish - start):
                    yield Extent(run, hole)

    def prefetch(self, offset: int, length: int) -> None:
        """Have the store fetch a range that will be read soon."""
        for index, inside, part in self._cut(offset, length):
            last = -(-(inside + part) // PAGE)
            for first, stop, source in self._pieces(index, inside // PAGE, last, self._owned_pages(index)):
                if source is not None:
                    self._layer(source).prefetch(index, first * PAGE, (stop - first) * PAGE)

    # Writing.

    def write(self, data: memoryview, offset: int) -> None:
        """Store the data; when this returns, it survives the death of this process."""
        self._check_end(offset, len(data))
        index, inside = divmod(offset, BLOCK)
        if inside + len(data) <= BLOCK:
            self._write_block(index, inside, data)
            return
        for index, inside, length in self._cut(offset, len(data)):
            self._write_block(index, inside, data[:length])
            data = data[length:]

    def _check_end(self, offset: int, length: int) -> None:
        """The export of a block device has no end. What was written there would come up when the volume grows."""
        if offset + length > self.map.size:
            raise OSError(errno.ENOSPC, "the volume can't be written beyond its end")

    def _write_block(self, index: int, offset: int, data: memoryview) -> None:
        wanted = mask_of(offset // PAGE, -(-(offset + len(data)) // PAGE))
        if self._owned.get(index, 0) & wanted == wanted:
            self._writable_current().write(index, offset, data, None)
            self._unsynced = True
            return
        layer = self._writable_current()
        with self._block_locks[index % _STRIPES]:
            owned = self._owned_pages(index)
            gained = wanted | self._merge(layer, index, offset, len(data))
            if not gained & ~wanted:
                data, offset = self._fill_up(index, offset, data)
            layer.write(index, offset, data, owned | gained)
            self._mark(index, gained)

    def _fill_up(self, index: int, offset: int, data: memoryview) -> tuple[memoryview, int]:
        """Complete the first and the last page from below where they are not owned and only a part is written."""
        owned = self._owned_pages(index)
        end = offset + len(data)
        first, last = offset // PAGE, (end - 1) // PAGE
        head = offset % PAGE and not owned >> first & 1
        tail = end % PAGE and not owned >> last & 1
        if not head and not tail:
            return data, offset
        start = first * PAGE if head else offset
        stop = (last + 1) * PAGE if tail else end
        whole = memoryview(bytearray(stop - start))
        if head:
            self._read_block(index, start, whole[:PAGE])
        if tail and (last != first or not head):
            # The tail page; where head and tail are one page, it has been read already.
            page_start = max(start, last * PAGE)
            self._read_block(index, page_start, whole[page_start - start :])
        whole[offset - start : end - start] = data
        return whole, start

    def _merge(self, layer: Layer, index: int, offset: int, length: int) -> int:
        """Copy up a block that has as many layers as an entry can name; answers with the pages that it then owns.

        Called with the block's lock held. The pages that the caller is about to cover completely are not copied.
        """
        owned = self._owned_pages(index)
        if self.map.depth(index) < DEPTH or owned & full_mask(self.map.size, index) == full_mask(self.map.size, index):
            return 0
        first, end = -(-offset // PAGE), (offset + length) // PAGE
        covered = mask_of(first, end) if end > first else 0
        for source, bits in self._base(index):
            for start, stop, is_set in runs(bits & ~owned & ~covered, 0, PAGES):
                if is_set:
                    page = memoryview(bytearray((stop - start) * PAGE))
                    self._layer(source).readinto(index, start * PAGE, page)
                    layer.write(index, start * PAGE, page, None)
        # Also what no layer had: it may hold the rests of a write that nobody acknowledged.
        present = owned | covered
        for _, bits in self._base(index):
            present |= bits
        for start, stop, is_set in runs(present, 0, PAGES):
            if not is_set:
                layer.punch(index, start * PAGE, (stop - start) * PAGE, None)
        return FULL

    def _mark(self, index: int, pages: int) -> None:
        with self._retracted(index), self._state:
            owned = self._owned.get(index, 0) | pages
            if self._run is not None:
                self._run.set(index, owned)
            self._owned[index] = owned
            self._tell(index)
            if not self._store.atomic_pages:
                self._unsaved.add(index)
                self._unsynced = True

    def _tell(self, index: int) -> None:
        if self._news is not None:
            self._news.add(index)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros; its whole pages take no space."""
        self._check_end(offset, length)
        for index, inside, part in self._cut(offset, length):
            first, end = -(-inside // PAGE), (inside + part) // PAGE
            if end <= first:
                self._write_block(index, inside, memoryview(bytes(part)))
                continue
            if inside < first * PAGE:
                self._write_block(index, inside, memoryview(bytes(first * PAGE - inside)))
            self._discard_pages(index, first, end)
            if end * PAGE < inside + part:
                self._write_block(index, end * PAGE, memoryview(bytes(inside + part - end * PAGE)))

    def discard(self, offset: int, length: int) -> None:
        """Give the whole pages of a range back; they read as zeros afterwards."""
        self._check_end(offset, length)
        for index, inside, part in self._cut(offset, length):
            first, end = -(-inside // PAGE), (inside + part) // PAGE
            if end > first:
                self._discard_pages(index, first, end)

    def _discard_pages(self, index: int, first: int, end: int) -> None:
        wanted = mask_of(first, end)
        if not self.map.depth(index) and not self._owned_pages(index) & wanted:
            return
        layer = self._writable_current()
        with self._block_locks[index % _STRIPES]:
            owned = self._owned_pages(index)
            gained = wanted | self._merge(layer, index, first * PAGE, (end - first) * PAGE)
            try:
                layer.punch(index, first * PAGE, (end - first) * PAGE, owned | gained)
            except BaseException:
                with self._retracted(index):
                    """Done or not: what was a plain block may have zero pages."""
                raise
            self._mark(index, gained)

    @property
    def has_failed(self) -> bool:
        """Whether a flush failed in such a way that no other can succeed."""
        return self._failure is not None

    def distrust(self, failure: Exception) -> None:
        """Have every flush fail, since what a predecessor wrote may be lost."""
        self._failure = failure

    def begin_flush(self) -> None:
        """Have the store begin with what the next flush will wait for, unless there is one. Raises OSError."""
        if not self._unsynced or self._current is None or not self._flushing.acquire(blocking=False):
            return
        try:
            self._current.begin_sync()
        except OSError as error:
            if error.errno not in _NOT_BEGUN:
                # What a kernel could not even begin to write it may have dropped, and it tells nobody else.
                self._failure = error
            raise
        finally:
            self._flushing.release()

    def flush(self) -> None:
        """Make everything that was acknowledged before this call survive the death of the machine."""
        with self._flushing:
            if self._failure is not None:
                # The kernel reports lost pages once; after that, only a new server may claim anything again.
                raise self._failure
            if not self._unsynced:
                return
            # First of all: if it can't be opened, everything stays to be done.
            layer = self._writable_current()
            with self._state:
                self._unsynced = False
                indexes, self._unsaved = self._unsaved, set()
                pages = {index: self._owned[index] for index in indexes}
            try:
                layer.sync()
            except Exception as error:
                self._failure = error
                raise
            if pages:
                self._save(layer, pages)

    def _save(self, layer: Layer, pages: dict[int, int]) -> None:
        try:
            layer.save_pages(pages)
        except Exception as error:
            if not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
                self._failure = error
                raise
            # The data is safe, and the marks can be written again when the store has space.
            with self._state:
                self._unsaved.update(pages)
                self._unsynced = True
            raise

    def owned(self) -> dict[int, int]:
        """The pages of the current epoch, by block, for `maps.freeze`. Requests may run: `newly_owned` tells the rest.

        A block of which they are not known counts with none: then the layers below stay visible to the map, which is
        never wrong, unless there are too many (`_learn_deep`). One of which none are owned is there, too, when a death
        came in the middle of `_merge`: it is no layer of that block.
        """
        self._learn_deep()
        with self._state:
            self._news = set()
            unread, known = dict.fromkeys(self._unread, 0), dict(self._owned)
        return unread | {index: pages for index, pages in known.items() if pages}

    def newly_owned(self) -> dict[int, int]:
        """Of the blocks that gained pages since the last call of this or of `owned`, or are known since, all pages."""
        with self._state:
            assert self._news is not None
            indexes, self._news = self._news, set()
            return {index: self._owned[index] for index in indexes}

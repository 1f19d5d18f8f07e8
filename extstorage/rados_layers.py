# SPDX-License-Identifier: BSD-2-Clause
"""Pages in RADOS: an object for each block, which knows by itself which of its pages are owned and which are zeros.

    layers                      table: which layers there are, entered before anything of them is made
    index.OWNER.EPOCH           one byte for each block: 0 = no object, 1 = may be there, 2 = was seen
    data.OWNER.EPOCH.INDEX      a block; its attribute `pages` has the owned pages, those that are zeros, and a CRC-32

Data and attribute change in one operation, so there is nothing that could disagree after a death. A zero page is known
from the attribute alone: it is not read, and holes are exact. The byte in the index is set before a block's first
write, so no object is ever out of the index's sight; bytes, not bits, because writers of neighbours need not agree.
Who has written many blocks of a neighbourhood will write more: as many again are entered at once, so that filling it
takes seven changes of the index, not 64, and no more than half of what is entered was in vain. A byte 1 may stand for
that, or for a death before the object was made, so `present` looks, and makes it 2 or 0 when it is asked by the one who
has the volume; it has little to look at, because each change of the index also says which neighbours are there.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator, Mapping

from extstorage.bitmaps import bits_of, indexes_of
from extstorage.errors import BrokenError
from extstorage.maps import Source
from extstorage.names import BLOCK, LARGEST, PAGE
from extstorage.pages import FULL, RECORD, from_record, mask_of, runs, to_record
from extstorage.rados_errors import NoAttributeError, NoObjectError
from extstorage.rados_pool import Change, Objects

#: The attribute of a block, and the table of layers.
PAGES = "pages"
LAYERS = "layers"

#: Locks for the blocks of a layer.
_STRIPES = 64
_MOST_BLOCKS = LARGEST // BLOCK
_TAIL = struct.Struct("<II")
_VERSION = 1

#: Blocks that are entered in the index with regard to one another.
_NEIGHBOURS = 64

_POSSIBLE = b"\x01"
_SEEN = b"\x02"
_NONE = b"\x00"
#: In memory only, where the index says "possible": entered and not written yet; there.
_AHEAD = b"\x03"
_MADE = b"\x04"


def stem_of(source: Source) -> str:
    return f"{source.owner.hex()}.{source.epoch:016x}"


def source_of(stem: str) -> Source:
    owner, _, epoch = stem.partition(".")
    return Source(bytes.fromhex(owner), int(epoch, 16))


def index_key(source: Source) -> str:
    return f"index.{stem_of(source)}"


def data_key(source: Source, index: int) -> str:
    return f"data.{stem_of(source)}.{index:08x}"


def encode_pages(key: str, owned: int, zeros: int) -> bytes:
    body = to_record(owned) + (to_record(zeros) if zeros else b"")
    return body + _TAIL.pack(_VERSION, zlib.crc32(body, zlib.crc32(key.encode())))


def decode_pages(key: str, record: bytes) -> tuple[int, int]:
    """(owned, zeros). The CRC covers the name: a record that got to another object is not believed."""
    body, tail = record[: -_TAIL.size], record[-_TAIL.size :]
    if len(body) not in (RECORD, 2 * RECORD) or len(tail) != _TAIL.size:
        raise BrokenError(path=key, reason=f"its record of pages has {len(record)} bytes")
    version, checksum = _TAIL.unpack(tail)
    if version != _VERSION or checksum != zlib.crc32(body, zlib.crc32(key.encode())):
        raise BrokenError(path=key, reason="its record of pages is damaged, or of another version")
    owned = FULL if body.startswith(b"\xff" * RECORD) else from_record(body[:RECORD])
    return owned, from_record(body[RECORD:])


def read_pages(objects: Objects, key: str) -> tuple[int, int] | None:
    """(owned, zeros) of a block; None if there is no such object."""
    try:
        return decode_pages(key, objects.attribute(key, PAGES))
    except NoObjectError:
        return None
    except NoAttributeError:
        return 0, 0  # a block that was being copied up when the writer died


class RadosLayer:
    """What one owner wrote in one epoch.

    `entries`, the index, is there for the one who writes; who has the volume gets it by `present`. With it, a block
    that was seen and is lost is damage; without it, nobody knows whether there was one.
    """

    def __init__(self, objects: Objects, source: Source, entries: bytes = b"") -> None:
        self._objects = objects
        self._source = source
        self._stem = f"data.{stem_of(source)}."
        self._indexed = bytearray(entries)
        self._growing = threading.Lock()
        # The zero pages of the blocks that were read or written so far; where there are any, also the owned ones.
        self._zeros: dict[int, int] = {}
        self._owned: dict[int, int] = {}
        self._stripes = tuple(threading.Lock() for _ in range(_STRIPES))

    def _key(self, index: int) -> str:
        return f"{self._stem}{index:08x}"

    def _zeros_of(self, index: int) -> int:
        zeros = self._zeros.get(index)
        if zeros is None:
            with self._stripes[index % _STRIPES]:
                return self._known_zeros(index)
        return zeros

    def _known_zeros(self, index: int) -> int:
        """The same; the block's stripe is locked."""
        if index not in self._zeros:
            self._load(index)
        return self._zeros[index]

    def load_pages(self, index: int) -> int:
        # Under the lock: an answer from before a change must not replace what was learnt by that change.
        with self._stripes[index % _STRIPES]:
            return self._load(index)

    def _load(self, index: int) -> int:
        key = self._key(index)
        found = read_pages(self._objects, key)
        if found is None and self._indexed[index : index + 1] in (_SEEN, _MADE):
            raise BrokenError(path=key, reason="the object is missing")
        owned, zeros = found or (0, 0)
        self._know(index, owned, zeros)
        return owned

    def _know(self, index: int, owned: int, zeros: int) -> None:
        if zeros:
            self._owned[index] = owned
        else:
            self._owned.pop(index, None)
        self._zeros[index] = zeros

    def present(self) -> dict[int, int | None]:
        """Also settles which of the blocks that may be there are.

        Who does not have the volume must not: the object of a block that they don't find may be on its way, and the
        block's writer, who has entered it already, won't do so again.
        """
        entries = self._entries()
        found: dict[int, int | None] = dict.fromkeys(indexes_of(bits_of(entries, _SEEN[0])))
        settled = bytearray(entries)
        for index, pages in self._possible(entries):
            if pages is not None:
                found[index] = pages
            settled[index] = _NONE[0] if pages is None else _SEEN[0]
        if settled != entries:
            self._objects.apply(index_key(self._source), Change().write_full(bytes(settled)), force=True)
        self._indexed = settled
        return found

    def blocks(self) -> Iterator[tuple[int, int | None]]:
        entries = self._entries()
        yield from ((index, None) for index in indexes_of(bits_of(entries, _SEEN[0])))
        yield from ((index, pages) for index, pages in self._possible(entries) if pages is not None)

    def _entries(self) -> bytes:
        return self._objects.read(index_key(self._source), _MOST_BLOCKS)

    def _possible(self, entries: bytes) -> Iterator[tuple[int, int | None]]:
        """The blocks that may be there, with the pages that they own; None for one that is not there."""
        if _POSSIBLE in entries:  # else there is nothing to start threads for, when a volume is opened
            possible = list(indexes_of(bits_of(entries, _POSSIBLE[0])))
            yield from zip(possible, self._objects.parallel(self._look, possible), strict=True)

    def _look(self, index: int) -> int | None:
        pages = read_pages(self._objects, self._key(index))
        return None if pages is None else pages[0]

    # Reading.

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        if self._zeros.get(index) == 0:
            self._read(index, offset, buffer)
            return
        zeros = self._zeros_of(index)
        end = offset + len(buffer)
        for first, stop, is_zero in runs(zeros, offset // PAGE, -(-end // PAGE)):
            start, finish = max(offset, first * PAGE), min(end, stop * PAGE)
            part = buffer[start - offset : finish - offset]
            if is_zero:
                part[:] = bytes(len(part))
            else:
                self._read(index, start, part)

    def _read(self, index: int, offset: int, buffer: memoryview) -> None:
        key = self._key(index)
        try:
            self._objects.readinto(key, offset, buffer)
        except NoObjectError:
            raise BrokenError(path=key, reason="the object is missing") from None

    def holes(self, index: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        end = offset + length
        for first, stop, is_zero in runs(self._zeros_of(index), offset // PAGE, -(-end // PAGE)):
            yield min(end, stop * PAGE) - max(offset, first * PAGE), is_zero

    def prefetch(self, index: int, offset: int, length: int) -> None:
        """There is no cache to fill."""

    def plain_object(self, index: int) -> str:
        """Zero pages are known from the attribute; behind them, the object may hold old rests."""
        return self._key(index) if self._zeros.get(index) == 0 else ""

    # Writing.

    def write(self, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        key = self._key(index)
        wanted = mask_of(offset // PAGE, -(-(offset + len(data)) // PAGE))
        if pages is None and self._indexed[index : index + 1] > _NONE and not self._zeros_of(index) & wanted:
            self._objects.write(key, offset, data)
            # A discard of the same pages may have come in between; then its mark is wrong now.
            if not self._zeros.get(index, wanted) & wanted:
                return
        self._enter(index)
        with self._stripes[index % _STRIPES]:
            zeros = self._known_zeros(index)
            if zeros & wanted:
                offset, data = _with_whole_pages(offset, data, zeros & wanted)
            self._change(index, Change().write(offset, data), pages, zeros & ~wanted)

    def punch(self, index: int, offset: int, length: int, pages: int | None) -> None:
        """Whole pages, except at the end of the volume."""
        self._enter(index)
        with self._stripes[index % _STRIPES]:
            zeros = self._known_zeros(index)
            change = Change()
            if offset + length >= BLOCK:
                change.touch().truncate(offset)
            else:
                self._objects.zero(change.touch(), offset, length)
            # Before it happens: a write of an owned page, which takes no lock, looks at this once it is done.
            self._zeros[index] = zeros | mask_of(offset // PAGE, -(-(offset + length) // PAGE))
            self._change(index, change, pages, self._zeros[index])

    def _enter(self, index: int) -> None:
        """Have the block in the index before its object is made."""
        entry = self._indexed[index : index + 1]
        if entry == _AHEAD:
            self._indexed[index] = _POSSIBLE[0]
        if entry > _NONE:
            return
        first = index // _NEIGHBOURS * _NEIGHBOURS
        entries = bytes(self._indexed[first : first + _NEIGHBOURS]).ljust(_NEIGHBOURS, _NONE)
        count = _to_enter(entries, index - first)
        change = Change().write(index, _POSSIBLE * count)
        made = [first + place for place in range(_NEIGHBOURS) if entries[place] == _MADE[0]]
        for known in made:
            change.write(known, _SEEN)
        self._objects.apply(index_key(self._source), change)
        with self._growing:
            self._indexed.extend(bytes(max(0, index + count - len(self._indexed))))
            for entered in range(index, index + count):
                # Another thread may have entered it meanwhile, and may know more of it.
                if not self._indexed[entered]:
                    self._indexed[entered] = _AHEAD[0]
                    self._zeros.setdefault(entered, 0)
            if self._indexed[index] == _AHEAD[0]:
                self._indexed[index] = _POSSIBLE[0]
            for known in made:
                self._indexed[known] = _SEEN[0]

    def _change(self, index: int, change: Change, pages: int | None, zeros: int) -> None:
        """Apply a change together with the pages that the block has afterwards; the block's stripe is locked."""
        key = self._key(index)
        try:
            if pages is None:
                pages = self._owned.get(index)
            if pages is None:
                pages = (read_pages(self._objects, key) or (0, 0))[0]
            self._objects.apply(key, change.set_attribute(PAGES, encode_pages(key, pages, zeros)))
            if self._indexed[index : index + 1] == _POSSIBLE:
                self._indexed[index] = _MADE[0]
        except BaseException:
            # Done or not: the store knows.
            self._owned.pop(index, None)
            self._zeros.pop(index, None)
            raise
        self._know(index, pages, zeros)

    def begin_sync(self) -> None:
        """Every write was durable when it was acknowledged."""

    def sync(self) -> None:
        """The same."""

    def save_pages(self, pages: Mapping[int, int]) -> None:
        """Kept with the data."""
        assert not pages


def _to_enter(entries: bytes, place: int) -> int:
    """How many blocks to enter, from the given place of a neighbourhood on; none of them is entered yet."""
    in_vain = entries.count(_AHEAD)
    written = len(entries) - entries.count(_NONE) - in_vain
    free = entries[place:]
    return min(max(1, written - in_vain + 1), len(free) - len(free.lstrip(_NONE)))


def _with_whole_pages(offset: int, data: memoryview, zeros: int) -> tuple[int, memoryview]:
    """Fill the first and the last page up with zeros where they were zero pages: the object may hold old rests."""
    end = offset + len(data)
    first, last = offset // PAGE, (end - 1) // PAGE
    start = first * PAGE if zeros >> first & 1 else offset
    stop = (last + 1) * PAGE if zeros >> last & 1 else end
    if (start, stop) == (offset, end):
        return offset, data
    return start, memoryview(bytes(offset - start) + bytes(data) + bytes(stop - end))


def open_layer(objects: Objects, source: Source) -> RadosLayer:
    """For reading. Raises BrokenError when there is no such layer."""
    key = index_key(source)
    try:
        objects.size(key)
    except NoObjectError:
        raise BrokenError(path=key, reason="the data of a layer is missing") from None
    return RadosLayer(objects, source)


def make_layer(objects: Objects, source: Source) -> RadosLayer:
    """For writing; made if it is not there."""
    key = index_key(source)
    try:
        entries = objects.read(key, _MOST_BLOCKS)
    except NoObjectError:
        objects.put_entry(LAYERS, stem_of(source), b"")
        objects.apply(key, Change().touch())
        entries = b""
    return RadosLayer(objects, source, entries)


def indexed(objects: Objects, source: Source) -> int:
    """The blocks that the layer may have."""
    try:
        entries = objects.read(index_key(source), _MOST_BLOCKS)
    except NoObjectError:
        return 0
    return bits_of(entries, _POSSIBLE[0], _SEEN[0])

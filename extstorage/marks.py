# SPDX-License-Identifier: BSD-2-Clause
"""What the maps of a store name: layers, blocks of frozen layers, contents. Pure, and in bounded memory.

Ten thousand clones of one image have the same body; so each body is looked at once, and no loop runs over entries: a
column of a map becomes, by bytes.translate() and int(), a bitmap for each layer, and bitmaps are united. Large ones are
kept packed, and when all together are too large, further layers are kept whole this time.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from itertools import chain

from extstorage.bitmaps import bits_of
from extstorage.maps import DIGEST, Source
from extstorage.scans import Scan

#: Bytes of a number in an entry.
_ENTRY = 4

#: Bits that are looked at of a digest, which make a table of 32 MiB.
_BITS = 28

#: Bytes of digests that are entered together, and digests that are known to be in the table without looking there.
_CHUNK = DIGEST << 16
_MOST_RECENT = 1 << 18

#: Bits that are worth packing.
_LONG = 1 << 15

#: Bytes of all bitmaps.
_ROOM = 96 << 20


class Marks:
    """What the maps that were added name. A map that has changed is added again: marks are never taken back."""

    def __init__(self) -> None:
        self._current: set[Source] = set()
        self._frozen: dict[Source, int | bytes] = {}
        self._whole: set[Source] = set()
        self._size = 0
        self._contents = _Contents()
        #: The bodies, and how many layers of blocks each names.
        self._seen: dict[object, int] = {}

    def add(self, scan: Scan) -> int:
        """Answers with how many layers of blocks the map names. Raises BrokenError: then some is marked already."""
        if not scan.head.read_only:
            self._current.add(scan.head.current)
        if scan.body not in self._seen:
            body = _Body(self)
            scan.read(body)
            self._seen[scan.body] = body.named
        return self._seen[scan.body]

    def add_sources(self, sources: tuple[Source, ...]) -> None:
        for source in sources:
            self._frozen.setdefault(source, 0)

    def add_digests(self, digests: bytes) -> None:
        self._contents.add(digests)

    def unite(self, source: Source, bits: int) -> None:
        if source in self._whole:
            return
        old = self._frozen[source]
        packed = _packed(_unpacked(old) | bits)
        self._size += _size(packed) - _size(old)
        if self._size <= _ROOM:
            self._frozen[source] = packed
            return
        self._whole.add(source)
        self._frozen[source] = 0
        self._size -= _size(packed)

    def names(self, source: Source) -> bool:
        """Whether any map needs this layer."""
        return source in self._current or source in self._frozen

    def blocks(self, source: Source) -> int | None:
        """The blocks of a frozen layer that maps name, as a bitmap; None when all of it shall stay.

        For a volume writes it, or nobody knows, for lack of room.
        """
        return None if source in self._current or source in self._whole else _unpacked(self._frozen.get(source, 0))

    def frozen_blocks(self) -> int:
        """How many blocks of frozen layers are named."""
        return sum(_unpacked(packed).bit_count() for packed in self._frozen.values())

    def names_content(self, digest: bytes) -> bool:
        """Whether any map needs this content block; seldom, and never for long, true of one that none needs."""
        return self._contents.may_have(digest)


class _Body:
    """Marks what a body names."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._sources: tuple[Source, ...] = ()
        self.named = 0

    def sources(self, sources: tuple[Source, ...]) -> None:
        self._sources = sources
        self._marks.add_sources(sources)

    def numbers(self, first: int, numbers: array[int]) -> None:
        self.named += len(numbers) - numbers.count(0)
        for source, bits in blocks_of_layers(self._sources, first, numbers):
            self._marks.unite(source, bits)

    def digests(self, digests: bytes) -> None:
        self._marks.add_digests(digests)


class _Contents:
    """Digests, by 28 bits of each: 32 MiB for four millions of them, which as Python objects would be 400.

    Of a hundred digests that were not added, one or two may look as if they were, and stay; which ones changes with
    each run, for it looks at other bits.
    """

    def __init__(self) -> None:
        self._at = random.randrange(DIGEST - 4 + 1)  # noqa: S311 - no secret
        self._bits = bytearray()
        self._recent: set[int] = set()
        self._unpack = struct.Struct(f"<{self._at}xI{DIGEST - 4 - self._at}x").iter_unpack

    def add(self, digests: bytes) -> None:
        if digests and not self._bits:
            self._bits = bytearray(1 << _BITS - 3)
        for start in range(0, len(digests), _CHUNK):
            numbers = set(chain.from_iterable(self._unpack(digests[start : start + _CHUNK])))
            for number in numbers - self._recent:
                self._bits[number >> 32 - _BITS + 3] |= 1 << (number >> 32 - _BITS & 7)
            if len(self._recent) > _MOST_RECENT:
                self._recent.clear()
            self._recent |= numbers

    def may_have(self, digest: bytes) -> bool:
        number = int.from_bytes(digest[self._at : self._at + 4], "little")
        return bool(self._bits) and bool(self._bits[number >> 32 - _BITS + 3] >> (number >> 32 - _BITS & 7) & 1)


def _packed(bits: int) -> int | bytes:
    if bits.bit_length() <= _LONG:
        return bits
    return zlib.compress(bits.to_bytes(-(-bits.bit_length() // 8), "little"), 1)


def _unpacked(packed: int | bytes) -> int:
    return packed if isinstance(packed, int) else int.from_bytes(zlib.decompress(packed), "little")


def _size(packed: int | bytes) -> int:
    return sys.getsizeof(packed) if packed else 0


def blocks_of_layers(sources: tuple[Source, ...], first: int, numbers: array[int]) -> Iterator[tuple[Source, int]]:
    """Layers and the blocks that name them, as bitmaps, by what a `scans.Reader` is told."""
    for number, bits in _numbers(numbers, len(sources)):
        yield sources[number - 1], bits << first


def _numbers(column: array[int], most: int) -> Iterator[tuple[int, int]]:
    """For each number up to `most`, where it is in the column."""
    if not most:
        return
    if sys.byteorder == "big":
        column.byteswap()
    data = column.tobytes()
    planes = [_Plane(data[byte::_ENTRY]) for byte in range(_ENTRY)]
    for number in range(1, most + 1):
        bits = planes[0].where(number & 255)
        for byte in range(1, _ENTRY):
            if bits:
                bits &= planes[byte].where(number >> 8 * byte & 255)
        if bits:
            yield number, bits


class _Plane:
    """One byte of each entry of a column."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._found: dict[int, int] = {}

    def where(self, value: int) -> int:
        """A bitmap of the entries whose byte is this."""
        if value not in self._found:
            self._found[value] = bits_of(self._data, value)
        return self._found[value]

# SPDX-License-Identifier: BSD-2-Clause
"""Page bitmaps of one block: 1024 pages as one Python integer, bit 0 the first page; 128 bytes when stored.

Integers and not python3-bitarray: the operations that the data path needs (is this range all set, where does the run
end) are single big-integer operations, and they need no import in programs that Ganeti starts all the time.
"""

from __future__ import annotations

from collections.abc import Iterator

from extstorage.names import BLOCK, PAGE

#: Pages of a block, bytes of a stored bitmap, and the bitmap of a block that has all its pages.
PAGES = BLOCK // PAGE
RECORD = PAGES // 8
FULL = (1 << PAGES) - 1
EMPTY_RECORD = bytes(RECORD)


def mask_of(first: int, end: int) -> int:
    """The pages `first` to `end` - 1."""
    return ((1 << (end - first)) - 1) << first


def full_mask(size: int, index: int) -> int:
    """All the pages that block `index` has in a volume of `size` bytes: fewer than 1024 in the last block."""
    length = min(BLOCK, size - index * BLOCK)
    return FULL if length == BLOCK else mask_of(0, -(-length // PAGE))


def to_record(bits: int) -> bytes:
    """A bitmap as it is stored."""
    return bits.to_bytes(RECORD, "little")


def from_record(record: bytes | memoryview) -> int:
    """The bitmap in a record; a shorter record is one without its last pages."""
    bits = int.from_bytes(record, "little")
    # One object for all full blocks: a volume of 1 TiB may have 262144 of them in memory.
    return FULL if bits == FULL else bits


def runs(bits: int, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Cut the pages `first` to `end` - 1 into runs: (first page, end page, whether set)."""
    while first < end:
        rest = bits >> first
        is_set = bool(rest & 1)
        differing = ~rest if is_set else rest
        length = (differing & -differing).bit_length() - 1 if differing else end - first
        stop = min(end, first + length)
        yield first, stop, is_set
        first = stop

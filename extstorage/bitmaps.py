# SPDX-License-Identifier: BSD-2-Clause
"""Which of a volume's blocks: one Python integer, bit 0 the first block. Pure.

A volume may have millions of blocks, so nothing here costs more than a walk over the bits: an integer is written down
in binary, which is linear, and its runs are found in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Owner = TypeVar("Owner")

_RUN = re.compile("1+")


def runs_of(bits: int) -> Iterator[tuple[int, int]]:
    """The runs of bits that are set: (first, end)."""
    text = bin(bits)[:1:-1]
    return (match.span() for match in _RUN.finditer(text))


def indexes_of(bits: int) -> Iterator[int]:
    """The bits that are set, one by one."""
    for first, end in runs_of(bits):
        yield from range(first, end)


def lookup(bits: int) -> Callable[[int], bool]:
    """What tells whether a bit is set, at the same cost for each."""
    data = bits.to_bytes(-(-bits.bit_length() // 8), "little")
    return lambda index: index >> 3 < len(data) and bool(data[index >> 3] >> (index & 7) & 1)


def bits_of(flags: bytes | bytearray, *values: int) -> int:
    """The positions of the bytes that have one of these values."""
    table = bytearray(b"0" * 256)
    for value in values:
        table[value] = ord("1")
    return int(flags[::-1].translate(table) or b"0", 2)


class Sample(Generic[Owner]):
    """Of the bits of many bitmaps, `wanted` to twice as many that lie evenly among all; all, if there are fewer.

    Nobody needs to know before how many there are: when there are too many, every second one is dropped.
    """

    def __init__(self, wanted: int) -> None:
        self._most = 2 * wanted
        self._every = 1
        self.count = 0
        self.chosen: list[tuple[Owner, int]] = []

    def add(self, owner: Owner, bits: int) -> None:
        for first, end in runs_of(bits):
            at = first
            while at < end:
                at = self._add_run(owner, at, min(end, at + self._most * self._every))

    def _add_run(self, owner: Owner, first: int, end: int) -> int:
        skipped = -self.count % self._every
        self.chosen += ((owner, index) for index in range(first + skipped, end, self._every))
        self.count += end - first
        while len(self.chosen) > self._most:
            del self.chosen[1::2]
            self._every *= 2
        return end

    def sum_of(self, sizes: Iterable[int]) -> int:
        """What all have together, when the chosen ones have these sizes."""
        return sum(sizes) * self.count // max(1, len(self.chosen))

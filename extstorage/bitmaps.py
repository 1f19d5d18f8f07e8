# SPDX-License-Identifier: BSD-2-Clause
"""Which of a volume's blocks: one Python integer, bit 0 the first block. Pure.

A volume may have millions of blocks, so nothing here costs more than a walk over the bits: an integer is written down
in binary, which is linear, and its runs are found in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

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

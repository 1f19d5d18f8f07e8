# SPDX-License-Identifier: BSD-2-Clause
"""Packs the entries of a map, piece by piece, so that after a change only the pieces that changed are packed again.

A map of 16 TiB has 64 MiB of entries, and at a snapshot the guest waits for the new map. So it is packed before, and
what the guest wrote meanwhile is put in while it waits. The result is one ordinary zlib stream: the pieces are deflated
each for itself, and their checksums combined. A piece is one of the 16 bytes of an entry, for so many blocks in a row:
in such a plane numbers that count up become runs. Pure.
"""

from __future__ import annotations

import functools
import sys
import zlib
from array import array
from itertools import groupby, product
from typing import NamedTuple

#: Numbers and bytes of an entry.
NUMBERS = 4
_SIZE = 4
ROW = _SIZE * NUMBERS

#: Blocks of a piece.
_BLOCKS = 1 << 14

#: The fastest of zlib: entries come in runs, and a clone must not wait for its map.
_LEVEL = 1

#: zlib's header for the fastest level and an empty last block of deflate (RFC 1950, RFC 1951 3.2.6).
_BEGIN, _END = b"\x78\x01", b"\x03\x00"

#: What Adler-32 counts modulo (RFC 1950).
_BASE = 65521


class Piece(NamedTuple):
    """Deflated data that refers to nothing outside of itself; of the data, the Adler-32 and the length."""

    deflated: bytes
    checksum: int
    length: int


_NOTHING = Piece(b"", 1, 0)


class Packing:
    """Entries, kept packed while they change. They belong to it alone."""

    def __init__(self, entries: array[int]) -> None:
        self.entries = entries
        #: For each byte of an entry, the ranges of blocks.
        self._planes: list[list[Piece]] = [[] for _ in range(ROW)]
        #: What is to be packed anew: (number in the entry, range of blocks, byte of the number).
        self._stale: set[tuple[int, int, int]] = set()
        self._forget_from(0)

    def _forget_from(self, block: int) -> None:
        end = -(-len(self.entries) // NUMBERS // _BLOCKS)
        self._stale.update(product(range(NUMBERS), range(block // _BLOCKS, end), range(_SIZE)))
        for plane in self._planes:
            plane.extend([_NOTHING] * (end - len(plane)))

    def reach(self, blocks: int) -> None:
        """Have an entry for each of at least so many blocks."""
        old = len(self.entries) // NUMBERS
        if blocks > old:
            self.entries.frombytes(bytes(ROW * (blocks - old)))
            self._forget_from(old)

    def replace(self, block: int, row: array[int]) -> None:
        start = block * NUMBERS
        for place in range(NUMBERS):
            changed = self.entries[start + place] ^ row[place]
            for byte in range(_SIZE):
                if changed >> 8 * byte & 255:
                    self._stale.add((place, block // _BLOCKS, byte))
        self.entries[start : start + NUMBERS] = row

    def packed(self) -> bytes:
        """All entries, as `zlib.decompress` understands it."""
        for (place, part), stale in groupby(sorted(self._stale), lambda key: key[:2]):
            numbers = self._numbers(place, part)
            for _, _, byte in stale:
                self._planes[place * _SIZE + byte][part] = _piece(numbers[byte::_SIZE])
        self._stale.clear()
        pieces = [piece for plane in self._planes for piece in plane]
        checksum = 1
        for piece in pieces:
            checksum = _combined(checksum, piece.checksum, piece.length)
        return b"".join((_BEGIN, *(piece.deflated for piece in pieces), _END, checksum.to_bytes(4, "big")))

    def _numbers(self, place: int, part: int) -> bytes:
        first = part * _BLOCKS * NUMBERS
        numbers = self.entries[first + place : first + _BLOCKS * NUMBERS : NUMBERS]
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tobytes()


def _piece(data: bytes) -> Piece:
    return _deflated(data) if data.strip(b"\0") else _zeros(len(data))


@functools.cache
def _zeros(length: int) -> Piece:
    """Most of a map."""
    return _deflated(bytes(length))


def _deflated(data: bytes) -> Piece:
    deflate = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS)
    return Piece(deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH), zlib.adler32(data), len(data))


def _combined(first: int, second: int, length: int) -> int:
    """The Adler-32 of two texts in a row (RFC 1950), from those of the two; `length` is that of the second."""
    low = (first & 0xFFFF) + (second & 0xFFFF) - 1
    high = length * ((first & 0xFFFF) - 1) + (first >> 16) + (second >> 16)
    return high % _BASE << 16 | low % _BASE

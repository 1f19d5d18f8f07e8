# SPDX-License-Identifier: BSD-2-Clause
"""Packs the entries of a map, piece by piece, so that after a change only the pieces that changed are packed again.

A map of 16 TiB has 64 MiB of entries, and at a snapshot the guest waits for the new map. So it is packed before, and
what the guest wrote meanwhile is put in while it waits. The result is one ordinary zlib stream: the pieces are deflated
each for itself, and their checksums combined. A piece is one of the 16 bytes of an entry, for so many blocks in a row:
in such a plane numbers that count up become runs. Pure.
"""

from __future__ import annotations

import sys
import zlib
from array import array

#: Numbers and bytes of an entry.
NUMBERS = 4
ROW = 4 * NUMBERS

#: Blocks of a piece.
_BLOCKS = 1 << 16

#: The fastest of zlib: entries come in runs, and a clone must not wait for its map.
_LEVEL = 1

_BEGIN, _END = b"\x78\x01", b"\x03\x00"
_BASE = 65521


class Packing:
    """Entries, kept packed while they change. They belong to it alone."""

    def __init__(self, entries: array[int]) -> None:
        self.entries = entries
        self._pieces: dict[tuple[int, int], tuple[bytes, int, int]] = {}
        #: Pieces that are to be packed anew: (byte of the entry, range of blocks).
        self._stale: set[tuple[int, int]] = set()
        self._forget_from(0)

    def _forget_from(self, block: int) -> None:
        end = -(-len(self.entries) // NUMBERS // _BLOCKS)
        self._stale |= {(place, part) for part in range(block // _BLOCKS, end) for place in range(ROW)}

    def reach(self, blocks: int) -> None:
        """Have an entry for each of at least so many blocks."""
        old = len(self.entries) // NUMBERS
        if blocks > old:
            self.entries.frombytes(bytes(ROW * (blocks - old)))
            self._forget_from(old)

    def replace(self, block: int, row: array[int]) -> None:
        start = block * NUMBERS
        for slot in range(NUMBERS):
            changed = self.entries[start + slot] ^ row[slot]
            for byte in range(4):
                if changed >> 8 * byte & 255:
                    self._stale.add((4 * slot + byte, block // _BLOCKS))
        self.entries[start : start + NUMBERS] = row

    def packed(self) -> bytes:
        """All entries, as `zlib.decompress` understands it."""
        for part in sorted({part for _, part in self._stale}):
            rows = self._rows(part)
            for place in range(ROW):
                if (place, part) in self._stale:
                    self._pieces[place, part] = _deflated(rows[place::ROW])
        self._stale.clear()
        pieces = [self._pieces[key] for key in sorted(self._pieces)]
        checksum = 1
        for _, adler, length in pieces:
            checksum = _combined(checksum, adler, length)
        return b"".join((_BEGIN, *(piece for piece, _, _ in pieces), _END, checksum.to_bytes(4, "big")))

    def _rows(self, part: int) -> bytes:
        rows = self.entries[part * _BLOCKS * NUMBERS : (part + 1) * _BLOCKS * NUMBERS]
        if sys.byteorder == "big":
            rows.byteswap()
        return rows.tobytes()


def _deflated(data: bytes) -> tuple[bytes, int, int]:
    """A part of a stream that refers to nothing outside of itself, with the Adler-32 and the length of the data."""
    deflate = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH), zlib.adler32(data), len(data)


def _combined(first: int, second: int, length: int) -> int:
    """The Adler-32 of two texts in a row (RFC 1950), from those of the two; `length` is that of the second."""
    low = (first & 0xFFFF) + (second & 0xFFFF) - 1
    high = length * ((first & 0xFFFF) - 1) + (first >> 16) + (second >> 16)
    return high % _BASE << 16 | low % _BASE

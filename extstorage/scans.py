# SPDX-License-Identifier: BSD-2-Clause
"""Reading maps piece by piece, for work that looks at all maps of a store, and once what many of them share.

A map of 16 TiB may have 128 MiB of digests and 64 MiB of entries, of which more than one copy would be needed at once;
and ten thousand clones of an image have the same body. So a map is handed out in pieces of a bounded size, in the order
in which it is stored, and its body has a name by which it is known again.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import Protocol

from extstorage import maps
from extstorage.errors import BrokenError
from extstorage.maps import DEPTH, DIGEST, HEADER, SOURCE, Source, VolumeMap
from extstorage.packing import ROW

#: Bytes of a map that are read at a time.
PIECE = 1 << 20

#: Entries that are handed out together: more need more memory, fewer more time.
_PART = 1 << 20

_NUMBER = ROW // DEPTH


class Reader(Protocol):
    """Who is told what is in a map. What it was told counts when `Scan.read` returns, and not if that raises."""

    def sources(self, sources: tuple[Source, ...]) -> None:
        """First, and once."""

    def numbers(self, first: int, numbers: array[int]) -> None:
        """One number of each entry, of blocks in a row from `first` on; those of a block come one after the other.

        Where all are 0, nothing is told.
        """

    def digests(self, digests: bytes) -> None:
        """At last, some at a time, in order."""


class Scan:
    """A map that is about to be read: its header, and where the pieces come from."""

    def __init__(self, header: bytes, path: str, pieces: Callable[[], Iterator[bytes]], body: object) -> None:
        self._head = maps.decode_head(header, path)
        self._path = path
        self._pieces = pieces
        #: The same for maps with the same body.
        self.body = (*self._head[1:], body)

    @property
    def head(self) -> VolumeMap:
        """The map without its tables."""
        return self._head.map

    def read(self, reader: Reader) -> None:
        """Read it all. Raises BrokenError on what `maps.decode` would refuse; some was told then already."""
        stream = _Stream(self._pieces(), self._path)
        reader.sources(self._sources(stream))
        planes = _Planes(stream.take(self._head.packed), self._head.entries, self._path)
        for _ in range(DEPTH):
            column = [planes.read() for _ in range(_NUMBER)]
            for first in range(0, self._head.entries, _PART):
                numbers = _numbers([plane[first : first + _PART] for plane in column])
                if numbers:
                    reader.numbers(first, numbers)
        planes.end()
        for digests in _aligned(stream.take(self._head.digests * DIGEST)):
            reader.digests(digests)
        stream.end(self._head.checksum)

    def _sources(self, stream: _Stream) -> tuple[Source, ...]:
        table = b"".join(stream.take(self._head.sources * SOURCE))
        return maps.decode_sources(memoryview(table), self._head.sources)


def scan_of(data: bytes, path: str) -> Scan:
    """Of a map that is in memory."""
    view = memoryview(data)[HEADER:]

    def pieces() -> Iterator[bytes]:
        return (bytes(view[at : at + PIECE]) for at in range(0, len(view), PIECE))

    return Scan(data[:HEADER], path, pieces, name_of(pieces()))


def name_of(pieces: Iterator[bytes]) -> bytes:
    """By what a body is known that has no other name."""
    # Here, for it takes a tenth of the time that a clone takes to import.
    from hashlib import blake2b

    found = blake2b()
    for piece in pieces:
        found.update(piece)
    return found.digest()


class _Stream:
    def __init__(self, pieces: Iterator[bytes], path: str) -> None:
        self._pieces = pieces
        self._path = path
        self._left = b""
        self._checksum = 0

    def take(self, length: int) -> Iterator[bytes]:
        """The next so many bytes, in pieces."""
        while length:
            piece = self._left or self._next()
            found, self._left = piece[:length], piece[length:]
            length -= len(found)
            yield found

    def _next(self) -> bytes:
        piece = next(self._pieces, b"")
        if not piece:
            raise BrokenError(path=self._path, reason="the map ends too early")
        self._checksum = zlib.crc32(piece, self._checksum)
        return piece

    def end(self, checksum: int) -> None:
        if self._left or next(self._pieces, b""):
            raise BrokenError(path=self._path, reason="the map has more bytes than its header says")
        if self._checksum != checksum:
            raise BrokenError(path=self._path, reason="the checksum of the map is wrong")


class _Planes:
    """The packed entries: one byte of each, and then the next of each."""

    def __init__(self, packed: Iterator[bytes], length: int, path: str) -> None:
        self._packed = packed
        self._length = length
        self._path = path
        self._unpacker = zlib.decompressobj()

    def read(self) -> bytearray:
        plane = bytearray()
        while len(plane) < self._length:
            found = self._unpack(self._length - len(plane))
            if not found:
                raise self._broken()
            plane += found
        return plane

    def end(self) -> None:
        if self._unpack(1) or not self._unpacker.eof or self._unpacker.unused_data:
            raise self._broken()

    def _unpack(self, most: int) -> bytes:
        """Some more, never more than `most`; b"" at the end."""
        try:
            found = self._unpacker.decompress(self._unpacker.unconsumed_tail, most)
            while not found and (piece := next(self._packed, b"")):
                found = self._unpacker.decompress(piece, most)
        except zlib.error:
            raise self._broken() from None
        return found

    def _broken(self) -> BrokenError:
        return BrokenError(path=self._path, reason="its entries can't be unpacked")


def _numbers(planes: list[bytearray]) -> array[int]:
    """Nothing, if all are 0."""
    numbers = array("I")
    if all(plane.count(0) == len(plane) for plane in planes):
        return numbers
    data = bytearray(_NUMBER * len(planes[0]))
    for byte, plane in enumerate(planes):
        data[byte::_NUMBER] = plane
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _aligned(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Whole digests."""
    left = b""
    for piece in pieces:
        found = left + piece if left else piece
        end = len(found) - len(found) % DIGEST
        left = found[end:]
        yield found[:end]

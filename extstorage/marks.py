# SPDX-License-Identifier: BSD-2-Clause
"""What the maps of a store name: layers, blocks of frozen layers, contents. Pure, and in bounded memory.

Ten thousand clones of one image name the same blocks; so equal tables are looked at once, and no loop runs over
entries: a column of a map becomes, by bytes.translate() and int(), a bitmap for each layer, and bitmaps are united.
"""

from __future__ import annotations

import hashlib
import random
import struct
import sys
from collections.abc import Iterator
from itertools import chain

from extstorage.maps import DEPTH, DIGEST, Source, VolumeMap

_ENTRY = 4
_BITS = 28
_CHUNK = DIGEST << 16
_MOST_RECENT = 1 << 18


class Blocks:
    """Indexes of blocks, a bit for each."""

    def __init__(self, bits: int) -> None:
        self._bytes = bits.to_bytes(-(-bits.bit_length() // 8), "little")

    def __contains__(self, index: object) -> bool:
        assert isinstance(index, int)
        at = index >> 3
        return at < len(self._bytes) and bool(self._bytes[at] >> (index & 7) & 1)


class Marks:
    """What the maps that were added name. A map that has changed is added again: marks are never taken back."""

    def __init__(self) -> None:
        self._current: set[Source] = set()
        self._frozen: dict[Source, int] = {}
        self._contents = _Contents()
        self._seen: set[bytes] = set()

    def add(self, volume_map: VolumeMap) -> None:
        if not volume_map.read_only:
            self._current.add(volume_map.current)
        digest = _digest(volume_map)
        if digest not in self._seen:
            self._seen.add(digest)
            for source in volume_map.sources:
                self._frozen.setdefault(source, 0)
            self._contents.add(volume_map.digests)
            for source, bits in blocks_of_layers(volume_map):
                self._frozen[source] |= bits

    def names(self, source: Source) -> bool:
        """Whether any map needs this layer."""
        return source in self._current or source in self._frozen

    def blocks(self, source: Source) -> Blocks | None:
        """The blocks of a frozen layer that maps name; None when a volume writes the layer and needs all of it."""
        return None if source in self._current else Blocks(self._frozen.get(source, 0))

    def frozen_blocks(self) -> int:
        """How many blocks of frozen layers are named."""
        return sum(bits.bit_count() for bits in self._frozen.values())

    def names_content(self, digest: bytes) -> bool:
        """Whether any map needs this content block; seldom, and never for long, true of one that none needs."""
        return self._contents.may_have(digest)


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


def _digest(volume_map: VolumeMap) -> bytes:
    digest = hashlib.blake2b(volume_map.entries, digest_size=16)
    digest.update(repr(volume_map.sources).encode())
    digest.update(volume_map.digests)
    return digest.digest()


def blocks_of_layers(volume_map: VolumeMap) -> Iterator[tuple[Source, int]]:
    """For each layer and position in an entry, the blocks that name the layer there, as a bitmap."""
    for depth in range(DEPTH):
        column = volume_map.entries[depth::DEPTH]
        if column.count(0) == len(column):
            return
        if sys.byteorder == "big":
            column.byteswap()
        data = column.tobytes()
        planes = [_Plane(data[byte::_ENTRY]) for byte in range(_ENTRY)]
        for number, source in enumerate(volume_map.sources, 1):
            bits = planes[0].where(number & 255)
            for byte in range(1, _ENTRY):
                if bits:
                    bits &= planes[byte].where(number >> 8 * byte & 255)
            if bits:
                yield source, bits


class _Plane:
    """One byte of each entry of a column."""

    def __init__(self, data: bytes) -> None:
        self._data = data[::-1]
        self._found: dict[int, int] = {}

    def where(self, value: int) -> int:
        """A bitmap of the entries whose byte is this."""
        if value not in self._found:
            table = bytearray(b"0" * 256)
            table[value] = ord("1")
            self._found[value] = int(self._data.translate(table), 2)
        return self._found[value]

# SPDX-License-Identifier: BSD-2-Clause
"""The map of a volume or snapshot: for each block, which frozen layers hold its pages. Pure; stores keep the bytes.

A map is flat. An entry names up to four layers itself, topmost first, and never another map: reading costs the same
after one snapshot and after a thousand, and any template can go at any time. A layer is what one owner (a volume id)
wrote in one epoch; a clone keeps offsets, so a layer's block has the index of the entry and need not be stored.
The layer of the volume's own current epoch is not in the map: it lies over every entry, page by page.

    header    magic, version, flags, size, owner, epoch, number of entries, number of sources, CRC-32 of all the rest
    sources   (owner id 16 bytes, epoch 8 bytes) each, numbered from 1
    entries   4 x 4 bytes each: source numbers, topmost first, 0 = none (0.4 MiB for 100 GiB)
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Mapping
from typing import NamedTuple

from extstorage.errors import BrokenError
from extstorage.names import LARGEST, blocks_of
from extstorage.pages import full_mask

DEPTH = 4
MAGIC = b"SNFAMAP\n"
VERSION = 1
READ_ONLY = 1

_HEADER = struct.Struct("<8sIIQ16sQQII")
_SOURCE = struct.Struct("<16sQ")
_MOST_SOURCES = 1 << 24


class Source(NamedTuple):
    """A layer: what `owner` wrote in `epoch`."""

    owner: bytes
    epoch: int


class VolumeMap(NamedTuple):
    """An immutable map; `entries` is never changed after construction."""

    size: int
    owner: bytes
    epoch: int
    read_only: bool
    sources: tuple[Source, ...]
    entries: array[int]

    @property
    def blocks(self) -> int:
        return len(self.entries) // DEPTH

    @property
    def current(self) -> Source:
        """The layer that the volume itself writes now."""
        return Source(self.owner, self.epoch)

    def layers(self, index: int) -> tuple[Source, ...]:
        """The frozen layers of a block, topmost first."""
        numbers = self.entries[index * DEPTH : index * DEPTH + DEPTH]
        return tuple(self.sources[number - 1] for number in numbers if number)

    def depth(self, index: int) -> int:
        """How many frozen layers a block has."""
        return DEPTH - self.entries[index * DEPTH : index * DEPTH + DEPTH].count(0)


def _zeros(blocks: int) -> array[int]:
    return array("I", bytes(4 * DEPTH * blocks))


def empty(size: int, owner: bytes) -> VolumeMap:
    """The map of a new volume without origin: all holes."""
    return VolumeMap(size, owner, 1, False, (), _zeros(blocks_of(size)))


def clone(parent: VolumeMap, size: int, owner: bytes) -> VolumeMap:
    """The map of a new volume that begins as a copy of a snapshot's."""
    entries = parent.entries[:]
    entries.extend(_zeros(blocks_of(size) - parent.blocks))
    return VolumeMap(size, owner, 1, False, parent.sources, entries)


def as_snapshot(frozen: VolumeMap) -> VolumeMap:
    """The map of a snapshot taken of a map that `freeze` made. Epoch 0 never has a layer: a snapshot owns nothing."""
    return frozen._replace(read_only=True, epoch=0)


def grow(old: VolumeMap, size: int) -> VolumeMap:
    """The map after growing; new blocks are holes."""
    return clone(old, size, old.owner)._replace(epoch=old.epoch)


def freeze(old: VolumeMap, owned: Mapping[int, int]) -> VolumeMap:
    """The map of the next epoch: what the current epoch owns becomes the topmost frozen layer of its blocks.

    `owned` maps block index to owned pages. A block that owns all its pages needs none of the layers below.
    """
    sources = (*old.sources, old.current)
    number = len(sources)
    entries = old.entries[:]
    for index, bits in owned.items():
        start = index * DEPTH
        # A merged block owns all of 1024 pages, also where the volume ends before them.
        full = full_mask(old.size, index)
        below = [] if bits & full == full else [n for n in entries[start : start + DEPTH] if n]
        layers = [number, *below]
        if len(layers) > DEPTH:
            raise ValueError(f"block {index} has more than {DEPTH} layers")
        entries[start : start + DEPTH] = array("I", layers + [0] * (DEPTH - len(layers)))
    return _without_unused(old._replace(epoch=old.epoch + 1, sources=sources, entries=entries))


def _without_unused(old: VolumeMap) -> VolumeMap:
    used = set(old.entries)
    used.discard(0)
    if len(used) == len(old.sources):
        return old
    kept = sorted(used)
    renumbered = {0: 0} | {number: position for position, number in enumerate(kept, 1)}
    entries = array("I", map(renumbered.__getitem__, old.entries))
    return old._replace(sources=tuple(old.sources[number - 1] for number in kept), entries=entries)


def encode(volume_map: VolumeMap) -> bytes:
    """The bytes that a store keeps."""
    table = b"".join(_SOURCE.pack(*source) for source in volume_map.sources)
    entries = volume_map.entries
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    body = table + entries.tobytes()
    return _header(volume_map, zlib.crc32(body, zlib.crc32(_header(volume_map, 0)))) + body


def _header(m: VolumeMap, checksum: int) -> bytes:
    flags = READ_ONLY if m.read_only else 0
    return _HEADER.pack(MAGIC, VERSION, flags, m.size, m.owner, m.epoch, m.blocks, len(m.sources), checksum)


def decode(data: bytes, path: str) -> VolumeMap:
    """Read a map. Raises BrokenError, with `path` in it, on anything that `encode` would not have written."""
    if len(data) < _HEADER.size:
        raise BrokenError(path=path, reason=f"the map has only {len(data)} bytes")
    head, count, blocks, checksum = decode_head(data, path)
    expected = _HEADER.size + count * _SOURCE.size + blocks * DEPTH * 4
    if len(data) != expected:
        raise BrokenError(path=path, reason=f"the map has {len(data)} bytes instead of {expected}")
    body = memoryview(data)[_HEADER.size :]
    if zlib.crc32(body, zlib.crc32(_zero_checksum(data))) != checksum:
        raise BrokenError(path=path, reason="the checksum of the map is wrong")
    entries = array("I")
    entries.frombytes(body[count * _SOURCE.size :])
    if sys.byteorder == "big":
        entries.byteswap()
    if blocks and max(entries) > count:
        raise BrokenError(path=path, reason="the map names a layer that it does not list")
    return head._replace(sources=_sources(body, count), entries=entries)


def decode_head(data: bytes, path: str) -> tuple[VolumeMap, int, int, int]:
    """The header alone: (a map without sources and entries, number of sources, of entries, checksum)."""
    magic, version, flags, size, owner, epoch, blocks, count, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BrokenError(path=path, reason="it is not a map")
    if version != VERSION or flags & ~READ_ONLY:
        raise BrokenError(path=path, reason=f"its version {version} or flags {flags:#x} are unknown here")
    if not 0 < size <= LARGEST or blocks != blocks_of(size) or count > _MOST_SOURCES:
        raise BrokenError(path=path, reason="the header of the map contradicts itself")
    return VolumeMap(size, owner, epoch, bool(flags & READ_ONLY), (), array("I")), count, blocks, checksum


def decode_heads(read: Callable[[int], bytes], path: str) -> VolumeMap:
    """A map without its entries, from the beginning of its bytes: what listings and collection need first."""
    data = read(_HEADER.size)
    if len(data) < _HEADER.size:
        raise BrokenError(path=path, reason=f"the map has only {len(data)} bytes")
    head, count, _, _ = decode_head(data, path)
    table = read(count * _SOURCE.size)
    if len(table) < count * _SOURCE.size:
        raise BrokenError(path=path, reason="the map ends in its list of layers")
    return head._replace(sources=_sources(memoryview(table), count))


def _zero_checksum(data: bytes) -> bytes:
    return bytes(data[: _HEADER.size - 4]) + bytes(4)


def _sources(body: memoryview, count: int) -> tuple[Source, ...]:
    return tuple(Source(*_SOURCE.unpack_from(body, position * _SOURCE.size)) for position in range(count))

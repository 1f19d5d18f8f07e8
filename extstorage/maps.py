# SPDX-License-Identifier: BSD-2-Clause
"""The map of a volume or snapshot: for each block, which frozen layers hold its pages. Pure; stores keep the bytes.

A map is flat. An entry names up to four layers itself, topmost first, and never another map: reading costs the same
after one snapshot and after a thousand, and any template can go at any time. A layer is what one owner (a volume id)
wrote in one epoch; a clone keeps offsets, so a layer's block has the index of the entry and need not be stored.
The layer of the volume's own current epoch is not in the map: it lies over every entry, page by page.
The lowest layer of a block may be *content*: an immutable block that is named by the SHA-256 of its bytes.

    header    magic, version, flags, size, owner, epoch, number of blocks, of sources, of digests, bytes of the packed
              entries, CRC-32 of all the rest
    sources   (owner id 16 bytes, epoch 8 bytes) each, numbered from 1
    entries   4 x 4 bytes for each block: source numbers, topmost first, 0 = none; with bit 31 set, the rest is the
              index of a digest. Kept as 16 planes of bytes, zlib: 0.4 MiB for 100 GiB become almost nothing
    digests   32 bytes each
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from extstorage.errors import BrokenError
from extstorage.names import BLOCK, LARGEST, blocks_of
from extstorage.pages import full_mask

DEPTH = 4
MAGIC = b"SNFAMAP\n"
VERSION = 2
READ_ONLY = 1
DIGEST = 32

#: An entry with this bit is not the number of a source but the index of a digest.
CONTENT = 1 << 31

_HEADER = struct.Struct("<8sIIQ16sQQIIII")
_SOURCE = struct.Struct("<16sQ")
_ROW = 4 * DEPTH
_MOST_SOURCES = 1 << 24
_LAST_EPOCH = 1 << 63

#: The fastest of zlib: entries come in runs, and a clone must not wait for its map.
_LEVEL = 1


class Source(NamedTuple):
    """A layer: what `owner` (16 bytes) wrote in `epoch`; or a content block, whose `owner` is its digest (32 bytes)."""

    owner: bytes
    epoch: int

    @property
    def is_content(self) -> bool:
        return len(self.owner) == DIGEST


class VolumeMap(NamedTuple):
    """An immutable map; `entries` is never changed after construction."""

    size: int
    owner: bytes
    epoch: int
    read_only: bool
    sources: tuple[Source, ...]
    entries: array[int]
    digests: bytes = b""

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
        return tuple(self._named(number) for number in numbers if number)

    def _named(self, number: int) -> Source:
        if number & CONTENT:
            start = (number ^ CONTENT) * DIGEST
            if start < len(self.digests):
                return Source(self.digests[start : start + DIGEST], 0)
        elif number <= len(self.sources):
            return self.sources[number - 1]
        raise BrokenError(path="a map", reason="it names a layer that it does not list")

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
    return VolumeMap(size, owner, 1, False, parent.sources, entries, parent.digests)


def from_digests(size: int, owner: bytes, digests: Sequence[bytes | None]) -> VolumeMap:
    """The map of an image whose blocks are all content; None is a hole."""
    holes = VolumeMap(size, owner, 0, True, (), _zeros(blocks_of(size)))
    return with_content(holes, {index: digest for index, digest in enumerate(digests) if digest is not None})


def with_content(old: VolumeMap, digests: Mapping[int, bytes]) -> VolumeMap:
    """The same map, in which the given blocks consist of nothing but the given content."""
    numbers = {old.digests[at : at + DIGEST]: at // DIGEST for at in range(0, len(old.digests), DIGEST)}
    entries = old.entries[:]
    for index, digest in digests.items():
        number = numbers.setdefault(digest, len(numbers))
        entries[index * DEPTH : index * DEPTH + DEPTH] = array("I", (CONTENT | number, 0, 0, 0))
    return _without_unused(old._replace(entries=entries, digests=b"".join(numbers)))


def with_new_content(old: VolumeMap, size: int, digests: Mapping[int, bytes]) -> VolumeMap:
    """The same for blocks that were holes, quickly: for a map that grows while an image is read."""
    entries = old.entries[:]
    entries.extend(_zeros(blocks_of(size) - old.blocks))
    first = len(old.digests) // DIGEST
    for number, index in enumerate(digests, first):
        entries[index * DEPTH] = CONTENT | number
    return old._replace(size=size, entries=entries, digests=old.digests + b"".join(digests.values()))


def cut(old: VolumeMap, blocks: int) -> VolumeMap:
    """The map of the first blocks alone."""
    return _without_unused(old._replace(size=min(old.size, blocks * BLOCK), entries=old.entries[: blocks * DEPTH]))


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
    hidden = not owned
    for index, bits in owned.items():
        start = index * DEPTH
        below = [n for n in entries[start : start + DEPTH] if n]
        whole = full_mask(old.size, index)
        if below and bits & whole == whole:
            below, hidden = [], True
        layers = [number, *below]
        if len(layers) > DEPTH:
            raise ValueError(f"block {index} has more than {DEPTH} layers")
        entries[start : start + DEPTH] = array("I", layers + [0] * (DEPTH - len(layers)))
    frozen = old._replace(epoch=old.epoch + 1, sources=sources, entries=entries)
    # Looking for what is not named any more takes longer than everything else, while the guest waits.
    return _without_unused(frozen) if hidden else frozen


def _without_unused(old: VolumeMap) -> VolumeMap:
    used = set(old.entries)
    used.discard(0)
    contents = sorted(number for number in used if number & CONTENT)
    numbers = sorted(number for number in used if not number & CONTENT)
    if len(numbers) == len(old.sources) and len(contents) * DIGEST == len(old.digests):
        return old
    if numbers[-1:] > [len(old.sources)] or [n ^ CONTENT for n in contents[-1:]] >= [len(old.digests) // DIGEST]:
        raise BrokenError(path="a map", reason="it names a layer that it does not list")
    renumbered = {0: 0} | {number: position for position, number in enumerate(numbers, 1)}
    renumbered |= {number: CONTENT | position for position, number in enumerate(contents)}
    entries = array("I", map(renumbered.__getitem__, old.entries))
    digests = b"".join(old.digests[at * DIGEST : (at + 1) * DIGEST] for at in (n ^ CONTENT for n in contents))
    return old._replace(sources=tuple(old.sources[n - 1] for n in numbers), entries=entries, digests=digests)


def encode(volume_map: VolumeMap) -> bytes:
    """The bytes that a store keeps."""
    entries = volume_map.entries
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    packed = zlib.compress(_planes(entries.tobytes()), _LEVEL)
    table = b"".join(_SOURCE.pack(*source) for source in volume_map.sources)
    body = b"".join((table, packed, volume_map.digests))
    checksum = zlib.crc32(body, zlib.crc32(_header(volume_map, len(packed), 0)))
    return _header(volume_map, len(packed), checksum) + body


def _planes(rows: bytes) -> bytes:
    """All first bytes of the entries, then all second ones, ...: in them numbers that count up become runs."""
    return b"".join(rows[place::_ROW] for place in range(_ROW))


def _rows(planes: bytes) -> bytearray:
    rows = bytearray(len(planes))
    length = len(planes) // _ROW
    for place in range(_ROW):
        rows[place::_ROW] = planes[place * length : (place + 1) * length]
    return rows


def _header(m: VolumeMap, packed: int, checksum: int) -> bytes:
    flags = READ_ONLY if m.read_only else 0
    counts = (m.blocks, len(m.sources), len(m.digests) // DIGEST)
    return _HEADER.pack(MAGIC, VERSION, flags, m.size, m.owner, m.epoch, *counts, packed, checksum)


class _Head(NamedTuple):
    """What the header says: a map without sources and entries, and the lengths of what follows."""

    map: VolumeMap
    blocks: int
    sources: int
    digests: int
    packed: int
    checksum: int

    @property
    def length(self) -> int:
        return _HEADER.size + self.sources * _SOURCE.size + self.packed + self.digests * DIGEST


def decode(data: bytes, path: str) -> VolumeMap:
    """Read a map. Raises BrokenError, with `path` in it, on anything that `encode` would not have written."""
    head = _decode_head(data, path)
    if len(data) != head.length:
        raise BrokenError(path=path, reason=f"the map has {len(data)} bytes instead of {head.length}")
    body = memoryview(data)[_HEADER.size :]
    if zlib.crc32(body, zlib.crc32(data[: _HEADER.size - 4] + bytes(4))) != head.checksum:
        raise BrokenError(path=path, reason="the checksum of the map is wrong")
    table = head.sources * _SOURCE.size
    entries = array("I")
    entries.frombytes(_rows(_unpack(body[table : table + head.packed], head.blocks * DEPTH * 4, path)))
    if sys.byteorder == "big":
        entries.byteswap()
    digests = bytes(body[table + head.packed :])
    return head.map._replace(sources=_sources(body, head.sources), entries=entries, digests=digests)


def _unpack(packed: memoryview, length: int, path: str) -> bytes:
    """Never more than `length` bytes, whatever the packed ones claim."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, length + 1)
    except zlib.error:
        data = b""
    if len(data) != length or not unpacker.eof or unpacker.unused_data:
        raise BrokenError(path=path, reason="its entries can't be unpacked")
    return data


def _decode_head(data: bytes, path: str) -> _Head:
    if len(data) < _HEADER.size:
        raise BrokenError(path=path, reason=f"the map has only {len(data)} bytes")
    magic, version, flags, size, owner, epoch, blocks, sources, digests, packed, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BrokenError(path=path, reason="it is not a map")
    if version != VERSION or flags & ~READ_ONLY:
        raise BrokenError(path=path, reason=f"its version {version} or flags {flags:#x} are unknown here")
    too_much = epoch > _LAST_EPOCH or sources > _MOST_SOURCES or digests > blocks
    if not 0 < size <= LARGEST or blocks != blocks_of(size) or too_much:
        raise BrokenError(path=path, reason="the header of the map contradicts itself")
    head = VolumeMap(size, owner, epoch, bool(flags & READ_ONLY), (), array("I"))
    return _Head(head, blocks, sources, digests, packed, checksum)


def decode_heads(read: Callable[[int], bytes], path: str) -> VolumeMap:
    """A map without its entries and digests, from the beginning of its bytes: what listings need."""
    head = _decode_head(read(_HEADER.size), path)
    table = read(head.sources * _SOURCE.size)
    if len(table) < head.sources * _SOURCE.size:
        raise BrokenError(path=path, reason="the map ends in its list of layers")
    return head.map._replace(sources=_sources(memoryview(table), head.sources))


def _sources(body: memoryview, count: int) -> tuple[Source, ...]:
    return tuple(Source(*_SOURCE.unpack_from(body, position * _SOURCE.size)) for position in range(count))

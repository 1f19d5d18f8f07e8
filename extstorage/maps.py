# SPDX-License-Identifier: BSD-2-Clause
"""The map of a volume or snapshot: for each block, which frozen layers hold its pages. Pure; stores keep the bytes.

A map is flat. An entry names up to four layers itself, topmost first, and never another map: reading costs the same
after one snapshot and after a thousand, and any template can go at any time. A layer is what one owner (a volume id)
wrote in one epoch; a clone keeps offsets, so a layer's block has the index of the entry and need not be stored.
The layer of the volume's own current epoch is not in the map: it lies over every entry, page by page.
The lowest layer of a block may be *content*: an immutable block that is named by the SHA-256 of its bytes.

    header    magic, version, flags, size, owner, epoch, number of entries, of sources, of digests, bytes of the packed
              entries, CRC-32 of the body, CRC-32 of the header
    body      three tables:
      sources   (owner id 16 bytes, epoch 8 bytes) each, numbered from 1
      entries   4 x 4 bytes for each block: source numbers, topmost first, 0 = none; with bit 31 set, the rest is the
                index of a digest. The blocks behind the last entry are holes. Kept as 16 planes of bytes, zlib: 0.4 MiB
                for 100 GiB become almost nothing
      digests   32 bytes each

The body says nothing of whose it is: that of a clone, of a snapshot and of a grown volume is the same, byte for byte.
So they get a new header, and the body is taken over as it is (`copied`).
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from extstorage.errors import BrokenError
from extstorage.names import BLOCK, LARGEST, blocks_of
from extstorage.packing import NUMBERS, ROW, Packing
from extstorage.pages import full_mask

#: The layers that an entry can name.
DEPTH = NUMBERS

MAGIC = b"SNFAMAP\n"
VERSION = 3

#: In the flags: of a snapshot or image.
READ_ONLY = 1

#: Bytes of a SHA-256.
DIGEST = 32

#: An entry with this bit is not the number of a source but the index of a digest.
CONTENT = 1 << 31

_HEADER = struct.Struct("<8sIIQ16sQIIIIII")
_SOURCE = struct.Struct("<16sQ")
_MOST_SOURCES = 1 << 24
_LAST_EPOCH = 1 << 63

#: The bytes of a header, and of a source.
HEADER = _HEADER.size
SOURCE = _SOURCE.size

#: Numbers that are looked at in one go, in which no other thread runs, such as those that answer a guest.
_AT_ONCE = 1 << 16


class Source(NamedTuple):
    """A layer: what `owner` (16 bytes) wrote in `epoch`; or a content block, whose `owner` is its digest (32 bytes)."""

    owner: bytes
    epoch: int

    @property
    def is_content(self) -> bool:
        return len(self.owner) == DIGEST


class VolumeMap(NamedTuple):
    """An immutable map; `entries` is never changed after construction, and may end before the volume does."""

    #: Bytes of the volume.
    size: int
    #: The volume's id (16 bytes), and the epoch in which it writes now.
    owner: bytes
    epoch: int
    #: Of a snapshot or image.
    read_only: bool
    sources: tuple[Source, ...]
    entries: array[int]
    digests: bytes = b""

    @property
    def blocks(self) -> int:
        return blocks_of(self.size)

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
        numbers = self.entries[index * DEPTH : index * DEPTH + DEPTH]
        return len(numbers) - numbers.count(0)


def _reaching(entries: array[int], blocks: int) -> array[int]:
    """A copy, which may be changed, with an entry for each of so many blocks."""
    found = array("I")
    for at in range(0, len(entries), _AT_ONCE):
        found.extend(entries[at : at + _AT_ONCE])
    nothing = array("I", bytes(4 * _AT_ONCE))
    missing = max(0, blocks * DEPTH - len(entries))
    for _ in range(missing // _AT_ONCE):
        found.extend(nothing)
    found.extend(nothing[: missing % _AT_ONCE])
    return found


def empty(size: int, owner: bytes) -> VolumeMap:
    """The map of a new volume without origin: all holes."""
    return VolumeMap(size, owner, 1, False, (), array("I"))


def clone(parent: VolumeMap, size: int, owner: bytes) -> VolumeMap:
    """The map of a new volume that begins as a copy of a snapshot's."""
    return parent._replace(size=size, owner=owner, epoch=1, read_only=False)


def from_digests(size: int, owner: bytes, digests: Sequence[bytes | None]) -> VolumeMap:
    """The map of an image whose blocks are all content; None is a hole."""
    holes = VolumeMap(size, owner, 0, True, (), array("I"))
    return with_content(holes, {index: digest for index, digest in enumerate(digests) if digest is not None})


def with_content(old: VolumeMap, digests: Mapping[int, bytes]) -> VolumeMap:
    """The same map, in which the given blocks consist of nothing but the given content."""
    numbers = {old.digests[at : at + DIGEST]: at // DIGEST for at in range(0, len(old.digests), DIGEST)}
    entries = _reaching(old.entries, _end(digests))
    for index, digest in digests.items():
        number = numbers.setdefault(digest, len(numbers))
        entries[index * DEPTH : index * DEPTH + DEPTH] = array("I", (CONTENT | number, 0, 0, 0))
    return _without_unused(old._replace(entries=entries, digests=b"".join(numbers)))


def with_new_content(old: VolumeMap, size: int, digests: Mapping[int, bytes]) -> VolumeMap:
    """The same for blocks that were holes, quickly: for a map that grows while an image is read."""
    entries = _reaching(old.entries, _end(digests))
    first = len(old.digests) // DIGEST
    for number, index in enumerate(digests, first):
        entries[index * DEPTH] = CONTENT | number
    return old._replace(size=size, entries=entries, digests=old.digests + b"".join(digests.values()))


def _end(indexes: Iterable[int]) -> int:
    return max(indexes, default=-1) + 1


def cut(old: VolumeMap, blocks: int) -> VolumeMap:
    """The map of the first blocks alone."""
    return _without_unused(old._replace(size=min(old.size, blocks * BLOCK), entries=old.entries[: blocks * DEPTH]))


def as_snapshot(frozen: VolumeMap) -> VolumeMap:
    """The map of a snapshot taken of a map that `freeze` made. Epoch 0 never has a layer: a snapshot owns nothing."""
    return frozen._replace(read_only=True, epoch=0)


def grow(old: VolumeMap, size: int) -> VolumeMap:
    """The map after growing; new blocks are holes."""
    return old._replace(size=size)


def freeze(old: VolumeMap, owned: Mapping[int, int]) -> VolumeMap:
    """The map of the next epoch: what the current epoch owns becomes the topmost frozen layer of its blocks.

    `owned` maps block index to owned pages. A block that owns all its pages needs none of the layers below.
    """
    sources = (*old.sources, old.current)
    number = len(sources)
    entries = _reaching(old.entries, _end(owned))
    hidden = not owned
    for index, bits in owned.items():
        start = index * DEPTH
        below = [n for n in entries[start : start + DEPTH] if n]
        entries[start : start + DEPTH] = row = frozen(old.size, index, number, below, bits)
        hidden = hidden or bool(below and not row[1])
    new = old._replace(epoch=old.epoch + 1, sources=sources, entries=entries)
    # Looking for what is not named any more takes longer than everything else.
    return _without_unused(new) if hidden else new


def frozen(size: int, index: int, number: int, below: list[int], bits: int) -> array[int]:
    """The entry of a block with the layer `number` over those `below`."""
    whole = full_mask(size, index)
    layers = [number] if bits & whole == whole else [number, *below]
    if len(layers) > DEPTH:
        raise ValueError(f"block {index} has more than {DEPTH} layers")
    return entry(layers)


def entry(layers: list[int]) -> array[int]:
    """The entry of a block that has these layers."""
    return array("I", layers + [0] * (DEPTH - len(layers)))


def _without_unused(old: VolumeMap) -> VolumeMap:
    used: set[int] = set()
    for at in range(0, len(old.entries), _AT_ONCE):
        used.update(old.entries[at : at + _AT_ONCE])
    used.discard(0)
    contents = sorted(number for number in used if number & CONTENT)
    numbers = sorted(number for number in used if not number & CONTENT)
    if len(numbers) == len(old.sources) and len(contents) * DIGEST == len(old.digests):
        return old
    if numbers[-1:] > [len(old.sources)] or [n ^ CONTENT for n in contents[-1:]] >= [len(old.digests) // DIGEST]:
        raise BrokenError(path="a map", reason="it names a layer that it does not list")
    renumbered = {0: 0} | {number: position for position, number in enumerate(numbers, 1)}
    renumbered |= {number: CONTENT | position for position, number in enumerate(contents)}
    entries = array("I")
    for at in range(0, len(old.entries), _AT_ONCE):
        entries.extend(map(renumbered.__getitem__, old.entries[at : at + _AT_ONCE]))
    digests = b"".join(old.digests[at * DIGEST : (at + 1) * DIGEST] for at in (n ^ CONTENT for n in contents))
    return old._replace(sources=tuple(old.sources[n - 1] for n in numbers), entries=entries, digests=digests)


def encode(volume_map: VolumeMap, packed: bytes = b"") -> bytes:
    """The bytes that a store keeps: header and body; `packed` are the packed entries, if they are at hand."""
    packed = packed or Packing(volume_map.entries).packed()
    table = b"".join(_SOURCE.pack(*source) for source in volume_map.sources)
    body = b"".join((table, packed, volume_map.digests))
    counts = len(volume_map.entries) // DEPTH, len(volume_map.sources), len(volume_map.digests) // DIGEST, len(packed)
    return _header(volume_map, *counts, zlib.crc32(body)) + body


def _rows(planes: bytes) -> bytearray:
    rows = bytearray(len(planes))
    length = len(planes) // ROW
    for place in range(ROW):
        rows[place::ROW] = planes[place * length : (place + 1) * length]
    return rows


def _header(m: VolumeMap, *counts_and_checksum: int) -> bytes:
    flags = READ_ONLY if m.read_only else 0
    header = _HEADER.pack(MAGIC, VERSION, flags, m.size, m.owner, m.epoch, *counts_and_checksum, 0)
    return header[:-4] + zlib.crc32(header).to_bytes(4, "little")


class Head(NamedTuple):
    """What the header says: a map without its tables, what they hold, and their checksum."""

    map: VolumeMap
    entries: int
    sources: int
    digests: int
    packed: int
    checksum: int

    @property
    def body(self) -> int:
        """The bytes of the body."""
        return self.sources * SOURCE + self.packed + self.digests * DIGEST


def decode(data: bytes, path: str) -> VolumeMap:
    """Read a map. Raises BrokenError, with `path` in it, on anything that `encode` would not have written."""
    head = decode_head(data, path)
    body = _checked_body(head, data, path)
    table = head.sources * SOURCE
    entries = array("I")
    entries.frombytes(_rows(_unpack(body[table : table + head.packed], head.entries * ROW, path)))
    if sys.byteorder == "big":
        entries.byteswap()
    digests = bytes(body[table + head.packed :])
    return head.map._replace(sources=decode_sources(body, head.sources), entries=entries, digests=digests)


def copied(data: bytes, new: VolumeMap, path: str) -> bytes:
    """The map in `data` with the head of `new`: as `encode` would write it, without unpacking anything.

    Raises BrokenError if `data` is damaged.
    """
    return new_header(data, new, path) + _checked_body(decode_head(data, path), data, path)


def new_header(header: bytes, new: VolumeMap, path: str) -> bytes:
    """The header for a map with the body that belongs to `header`, and the head of `new`."""
    head = decode_head(header, path)
    if head.entries > new.blocks:
        raise BrokenError(path=path, reason=f"it has {head.entries} blocks, more than a map of {new.size} bytes")
    return _header(new, *head[1:])


def _checked_body(head: Head, data: bytes, path: str) -> memoryview:
    body = memoryview(data)[HEADER:]
    if len(body) != head.body:
        raise BrokenError(path=path, reason=f"the map has {len(body)} bytes of tables instead of {head.body}")
    if zlib.crc32(body) != head.checksum:
        raise BrokenError(path=path, reason="the checksum of the map is wrong")
    return body


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


def decode_head(data: bytes, path: str) -> Head:
    """Raises BrokenError on what no map begins with."""
    if len(data) < HEADER:
        raise BrokenError(path=path, reason=f"the map has only {len(data)} bytes")
    magic, version, flags, size, owner, epoch, *counts, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BrokenError(path=path, reason="it is not a map")
    if version != VERSION or flags & ~READ_ONLY:
        raise BrokenError(path=path, reason=f"its version {version} or flags {flags:#x} are unknown here")
    if zlib.crc32(data[: HEADER - 4] + bytes(4)) != checksum:
        raise BrokenError(path=path, reason="the checksum of the map's header is wrong")
    head = Head(VolumeMap(size, owner, epoch, bool(flags & READ_ONLY), (), array("I")), *counts)
    too_much = epoch > _LAST_EPOCH or head.sources > _MOST_SOURCES or head.digests > head.entries
    if not 0 < size <= LARGEST or head.entries > blocks_of(size) or too_much:
        raise BrokenError(path=path, reason="the header of the map contradicts itself")
    return head


def decode_heads(read: Callable[[int], bytes], path: str) -> VolumeMap:
    """A map without its entries and digests, from the beginning of its bytes: what listings need.

    The checksum of the layers that it lists is that of the whole body, which is not read.
    """
    head = decode_head(read(HEADER), path)
    table = read(head.sources * SOURCE) if head.sources else b""
    if len(table) < head.sources * SOURCE:
        raise BrokenError(path=path, reason="the map ends in its list of layers")
    return head.map._replace(sources=decode_sources(memoryview(table), head.sources))


def decode_sources(body: memoryview, count: int) -> tuple[Source, ...]:
    return tuple(Source(*_SOURCE.unpack_from(body, position * SOURCE)) for position in range(count))

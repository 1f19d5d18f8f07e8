# SPDX-License-Identifier: BSD-2-Clause
"""Files of a Pithos store as origins: their maps are read, and their blocks stay where they are.

A block of Pithos is named by its content, as ours are, so a clone of a Pithos file is a map of digests that our store
does not have; they are read in the places that the configuration names (`archipelago.pithos`):

    nfs:/DIRECTORY      Pithos' own files: blocks/AA/BB/CC/NAME and maps/AA/BB/CC/NAME, AA BB CC from the name itself
    archip:/DIRECTORY   those of Archipelago's filed: the same, but AA BB CC from the SHA-256 of the name; names of 64
                        hex digits are looked for as Pithos has them first
    rados:maps=POOL,blocks=POOL[?conf=FILE&user=NAME&keyring=FILE]     an object for each name

What is read there is somebody else's and judged: names, sizes, lengths and flags of a map; a map that is named by its
hash must have it. Nothing is ever written to these places, except by `export`, which makes such a directory.

Layouts and map formats: Synnefo 0.15 (v0), Archipelago 0.4 (v1, v2).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from extstorage import maps
from extstorage.content import NOTHING, root_of
from extstorage.errors import BadStoreSpecError, BrokenError
from extstorage.file_layers import ContentFile
from extstorage.maps import DIGEST, VolumeMap
from extstorage.names import BLOCK, SECTOR, blocks_of, new_id
from extstorage.references import HASH, Reference
from extstorage.specs import RadosSpec, parse_options
from extstorage.store import Layer
from ganeti_plugin.errors import InputError

if TYPE_CHECKING:
    from extstorage.rados_pool import Client
    from extstorage.rados_pool import Objects as RadosObjects

_POOLS = re.compile(r"maps=([A-Za-z0-9._-]+),blocks=([A-Za-z0-9._-]+)", re.ASCII)

#: v2: signature, version, size, block size, flags, epoch; numbers big-endian.
_V2 = struct.Struct(">4sIQIIQ")
_SIGNATURE = b"AMF."
_READ_ONLY, _DELETED = 1, 2

#: v2: the entries are in objects of a block's size each, named by the header's name and a number. The length of a name
#: is in the byte order of the machine that wrote it, which was an x86.
_ENTRY = struct.Struct("<BI123s")
_PER_CHUNK = BLOCK // _ENTRY.size
_ENTRY_ARCHIPELAGO, _ENTRY_ZERO = 2, 4
_ENTRY_WRITABLE, _ENTRY_DELETED = 1, 8

#: v1: version and size, then a flag and 32 bytes for each block.
_V1 = struct.Struct("<IQ")
_V1_ENTRY = 1 + DIGEST

#: Seconds for an operation on a pool of Pithos.
_DEADLINE = 30.0


class NoPithosError(InputError):
    template = "the origin {text!r} is a file of Pithos, and no Pithos store is configured"
    hint = "name its place in the table archipelago.pithos"


class NoSuchMapError(InputError):
    template = "no Pithos store has a map {name!r} (looked in {places})"


class MapRefusedError(InputError):
    template = "the map {name!r} of the Pithos store {place} is refused: {reason}"


# Places.


class Objects(Protocol):
    """Named byte strings, read only."""

    def size(self, name: str) -> int:
        """-1: there is none."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """May be short at the end."""

    def layer(self, name: str) -> Layer | None:
        """As a block."""


class Tree:
    """Files in three levels of directories; `layouts` tell which, the likeliest first."""

    def __init__(self, directory: Path, *layouts: Callable[[str], str]) -> None:
        self._directory = directory
        self._layouts = layouts

    def _paths(self, name: str) -> Iterator[Path]:
        for layout in self._layouts:
            key = layout(name)
            if key:
                yield self._directory / key[:2] / key[2:4] / key[4:6] / name

    def _open(self, name: str) -> tuple[int, Path] | None:
        for path in self._paths(name):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BrokenError(path=path, reason=f"it can't be read ({error.strerror})") from None
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor, path
            os.close(descriptor)
            raise BrokenError(path=path, reason="it is not a regular file")
        return None

    def size(self, name: str) -> int:
        found = self._open(name)
        if found is None:
            return -1
        size = os.fstat(found[0]).st_size
        os.close(found[0])
        return size

    def read(self, name: str, offset: int, length: int) -> bytes:
        found = self._open(name)
        if found is None:
            return b""
        try:
            return os.pread(found[0], length, offset)
        except OSError as error:
            raise BrokenError(path=found[1], reason=f"it can't be read ({error.strerror})") from None
        finally:
            os.close(found[0])

    def layer(self, name: str) -> Layer | None:
        found = self._open(name)
        if found is None:
            return None
        os.close(found[0])
        try:
            return ContentFile(found[1])
        except OSError:
            return None


def _by_name(name: str) -> str:
    return name if HASH.fullmatch(name) else ""


def _by_hash_of_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Pool:
    """Objects of a RADOS pool; connected when it is first needed."""

    def __init__(self, spec: RadosSpec) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._client: Client | None = None

    def _objects(self) -> RadosObjects:
        from extstorage.rados_pool import Client

        with self._lock:
            if self._client is None:
                self._client = Client(self._spec, _DEADLINE)
        return self._client.objects

    def size(self, name: str) -> int:
        from extstorage.rados_errors import NoObjectError

        try:
            return self._objects().size(name)
        except NoObjectError:
            return -1

    def read(self, name: str, offset: int, length: int) -> bytes:
        from extstorage.rados_errors import NoObjectError

        try:
            return self._objects().read(name, length, offset)
        except NoObjectError:
            return b""

    def layer(self, name: str) -> Layer | None:
        from extstorage.rados_contents import ContentBlock

        return ContentBlock(self._objects(), name) if self.size(name) >= 0 else None


class Place(NamedTuple):
    """A Pithos store."""

    title: str
    maps: Objects
    blocks: Objects


def parse(text: str) -> Place:
    """What a line of the table `archipelago.pithos` means; raises BadStoreSpecError."""
    kind, colon, rest = text.partition(":")
    if colon and kind in ("nfs", "archip"):
        if not rest.startswith("/") or ".." in rest.split("/") or "\0" in rest:
            raise BadStoreSpecError(spec=text[:200], reason=f"after {kind}: there must be an absolute directory")
        layouts = (_by_name,) if kind == "nfs" else (_by_name, _by_hash_of_name)
        return Place(text, Tree(Path(rest) / "maps", *layouts), Tree(Path(rest) / "blocks", *layouts))
    if colon and kind == "rados":
        pools, _, query = rest.partition("?")
        found = _POOLS.fullmatch(pools)
        if not found:
            raise BadStoreSpecError(spec=text[:200], reason="after rados: there must be maps=POOL,blocks=POOL")
        options = parse_options(text, query, ("conf", "user", "keyring"))
        usual = RadosSpec("")
        usual = usual._replace(
            conf=Path(options.get("conf", str(usual.conf))),
            user=options.get("user", usual.user),
            keyring=options.get("keyring", usual.keyring),
        )
        return Place(text, *(Pool(usual._replace(pool=pool)) for pool in found.groups()))
    raise BadStoreSpecError(spec=text[:200], reason="it begins with none of nfs:, archip: and rados:")


class Pithos:
    """All Pithos stores that are configured."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._places = [parse(text) for text in table.values()]

    def layer(self, digest: bytes) -> Layer | None:
        """A block, in the first place that has it."""
        for place in self._places:
            layer = place.blocks.layer(digest.hex())
            if layer is not None:
                return layer
        return None

    def origin_map(self, wanted: Reference) -> VolumeMap:
        """The map of a file, as a snapshot's: what a clone begins as."""
        if not self._places:
            raise NoPithosError(text=str(wanted))
        for place in self._places:
            length = place.maps.size(wanted.name)
            if length >= 0:
                return _read(place, wanted, length).origin_map()
        raise NoSuchMapError(name=wanted.name, places=", ".join(place.title for place in self._places))


# Maps.


class PithosMap(NamedTuple):
    size: int
    digests: Sequence[bytes]

    def origin_map(self) -> VolumeMap:
        """A disk has whole sectors; what is behind the end of the file is zeros."""
        size = -(-self.size // SECTOR) * SECTOR
        digests = [None if digest == NOTHING else digest for digest in self.digests]
        return maps.from_digests(size, new_id(), digests)


def _read(place: Place, wanted: Reference, length: int) -> PithosMap:
    head = place.maps.read(wanted.name, 0, _V2.size)
    if head[:4] == _SIGNATURE:
        return _read_v2(place, wanted, head)
    if len(head) >= _V1.size:
        version, size = _V1.unpack_from(head)
        if version == 1 and size == wanted.size and length == _V1.size + blocks_of(size) * _V1_ENTRY:
            return _read_v1(place, wanted)
    return _read_v0(place, wanted, length)


def _refused(place: Place, wanted: Reference, reason: str) -> MapRefusedError:
    return MapRefusedError(name=wanted.name, place=place.title, reason=reason)


def _body(place: Place, wanted: Reference, name: str, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = place.maps.read(name, offset, min(length, BLOCK))
        if not part:
            raise _refused(place, wanted, "it is too short")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _read_v0(place: Place, wanted: Reference, length: int) -> PithosMap:
    """Digests and nothing else."""
    count = blocks_of(wanted.size)
    if length != count * DIGEST:
        raise _refused(place, wanted, f"it has {length} bytes instead of {count * DIGEST}, for {wanted.size} bytes")
    data = _body(place, wanted, wanted.name, 0, length)
    digests = [data[at : at + DIGEST] for at in range(0, length, DIGEST)]
    if HASH.fullmatch(wanted.name) and root_of(digests).hex() != wanted.name:
        raise _refused(place, wanted, "its hash is not its name")
    return PithosMap(wanted.size, digests)


def _read_v1(place: Place, wanted: Reference) -> PithosMap:
    data = _body(place, wanted, wanted.name, _V1.size, blocks_of(wanted.size) * _V1_ENTRY)
    digests = []
    for at in range(0, len(data), _V1_ENTRY):
        if data[at]:
            raise _refused(place, wanted, "it names blocks of a volume")
        digests.append(data[at + 1 : at + _V1_ENTRY])
    return PithosMap(wanted.size, digests)


def _read_v2(place: Place, wanted: Reference, head: bytes) -> PithosMap:
    if len(head) < _V2.size:
        raise _refused(place, wanted, "its header is cut off")
    _, version, size, block_size, flags, _ = _V2.unpack(head)
    if version != 2:
        raise _refused(place, wanted, f"its version {version} is unknown")
    if size != wanted.size:
        raise _refused(place, wanted, f"it is of {size} bytes and not of {wanted.size}")
    if block_size != BLOCK:
        raise _refused(place, wanted, f"its blocks have {block_size} bytes instead of {BLOCK}")
    if flags & _DELETED or not flags & _READ_ONLY:
        raise _refused(place, wanted, "it was deleted" if flags & _DELETED else "it can be written, so it is no image")
    count = blocks_of(size)
    digests: list[bytes] = []
    for chunk in range(-(-count // _PER_CHUNK)):
        entries = min(_PER_CHUNK, count - len(digests))
        data = _body(place, wanted, f"{wanted.name}_{chunk:016x}", 0, entries * _ENTRY.size)
        digests += [_digest(place, wanted, *entry) for entry in _ENTRY.iter_unpack(data)]
    return PithosMap(size, digests)


def _digest(place: Place, wanted: Reference, flags: int, length: int, name: bytes) -> bytes:
    if flags & _ENTRY_ZERO:
        return NOTHING
    if flags & (_ENTRY_ARCHIPELAGO | _ENTRY_WRITABLE):
        raise _refused(place, wanted, "it names blocks of a volume")
    if flags & _ENTRY_DELETED or length != 2 * DIGEST:
        raise _refused(place, wanted, "an entry of it is not the name of a block")
    text = name[:length].decode("ascii", "replace")
    if not HASH.fullmatch(text) or name[length:].strip(b"\0"):
        raise _refused(place, wanted, "an entry of it is not the name of a block")
    return bytes.fromhex(text)

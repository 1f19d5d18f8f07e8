# SPDX-License-Identifier: BSD-2-Clause
"""What container format a disk image is in, judged by bounded code of ours and never by a tool that guesses.

QEMU's own probing opens whatever a header names: a backing file, a data file, a network address. So a header is looked
at here first, in a few reads of fixed size, and the verdict is the format that every later command is given
explicitly. The declared format must be the detected one; what could make a tool open another file is refused, and so
is what nobody asked for (encryption, snapshots inside the file, unknown features). Only headers and footers are read,
never what the disk holds (threats R1, R2, H01-H12, H20). The numbers in the code are cases of that list.

Layout of qcow2: docs/interop/qcow2.txt of QEMU 7.2 to 9.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from ganeti_plugin.errors import InputError

SECTOR = 512

#: The largest virtual size that is accepted at all: 64 TiB, far above any disk and far below any overflow.
SIZE_LIMIT = 1 << 46

#: Bytes at the start and at the end of a file that are searched for signatures. The head holds every header that QEMU
#: 7.2 probes for, and the volume descriptor of an ISO image.
HEAD = 64 * 1024
TAIL = 2048


class Format(StrEnum):
    """The formats that an image may be declared to be in; the list is closed (H12)."""

    RAW = "raw"
    QCOW2 = "qcow2"


class ImageRefusedError(InputError):
    """The image is not one that may be used. `case` is the number of the threat, for tests and statistics.

    Where it is not what it was declared to be, `found` are the formats whose signatures it carries.
    """

    template = "the image is refused: {reason}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An image that was looked at and may be used as `format`, and as nothing else."""

    format: Format
    #: Bytes of the disk that the image describes.
    virtual_size: int
    #: Bytes of the file when it was judged; another length later means that it was changed (H15).
    file_size: int


def judge(fd: int, declared: Format | str, *, size_limit: int = SIZE_LIMIT) -> Verdict:
    """Look at the image open at `fd` (any seekable file; its position is not used) and say what it is.

    Raises ImageRefusedError, with the reason in one sentence, when it is not of the declared format or not acceptable.
    """
    wanted = _closed(declared)
    file_size = os.lseek(fd, 0, os.SEEK_END)
    if file_size == 0:
        raise _refused("H20", "it is empty")
    found = detect(fd, file_size)
    expected = ["qcow2"] if wanted is Format.QCOW2 else []
    if found != expected:
        raise _mismatch(wanted, found)
    virtual_size = _qcow2_size(fd, file_size) if wanted is Format.QCOW2 else file_size
    _check_size(virtual_size, size_limit)
    return Verdict(format=wanted, virtual_size=virtual_size, file_size=file_size)


def detect(fd: int, file_size: int) -> list[str]:
    """The names of all container formats whose signature the file carries, at its start or at its end."""
    head = os.pread(fd, min(HEAD, file_size), 0)
    start = max(0, file_size - TAIL)
    tail = os.pread(fd, file_size - start, start)
    return sorted({name for name, matches in _SIGNATURES if matches(head, tail)})


def _refused(case: str, reason: str, **more: object) -> ImageRefusedError:
    return ImageRefusedError(case=case, reason=reason, **more)


def _closed(declared: Format | str) -> Format:
    try:
        return Format(declared)
    except ValueError:
        shown = repr(str(declared)[:40])
        raise _refused("H12", f"its declared format {shown} is not one of {', '.join(Format)}") from None


def _mismatch(wanted: Format, found: list[str]) -> ImageRefusedError:
    if wanted is Format.RAW:
        return _refused("H08", f"it is declared raw but carries the signature of {' and '.join(found)}", found=found)
    if "qcow2" not in found:
        actual = " and ".join(found) or "raw"
        return _refused("H09", f"it is declared qcow2 but looks like {actual}", found=found)
    others = " and ".join(name for name in found if name != "qcow2")
    return _refused("H09", f"it is qcow2 but also carries the signature of {others}")


def _check_size(size: int, limit: int) -> None:
    if size == 0:
        raise _refused("H20", "its virtual size is zero")
    if size > limit:
        raise _refused("H20", f"its virtual size of {size} bytes is above the limit of {limit}")
    if size % SECTOR:
        raise _refused("H20", f"its virtual size of {size} bytes is not a multiple of {SECTOR}")


# --- signatures ----------------------------------------------------------------------------------------------------

Match = Callable[[bytes, bytes], bool]


def _at(offset: int, *magics: bytes) -> Match:
    return lambda head, _tail: any(head[offset : offset + len(magic)] == magic for magic in magics)


def _near_end(magic: bytes) -> Match:
    """A footer. Tools look for it in the last sector, rounded in several ways: so it is searched for, not compared."""
    return lambda _head, tail: magic in tail


def _qcow(version_is: Callable[[int], bool]) -> Match:
    def matches(head: bytes, _tail: bytes) -> bool:
        return head[:4] == b"QFI\xfb" and version_is(int.from_bytes(head[4:8], "big"))

    return matches


def _is_vmdk_text(head: bytes, _tail: bytes) -> bool:
    """QEMU takes as VMDK any text that says version=N after nothing but comments and blank lines."""
    if b"# Disk DescriptorFile" in head[:2048]:
        return True
    for line in head[:4096].split(b"\n"):
        text = line.strip()
        if text and not text.startswith(b"#"):
            return text.lower().startswith(b"version=")
    return False


_SIGNATURES: tuple[tuple[str, Match], ...] = (
    ("qcow", _qcow(lambda version: version < 2)),
    ("qcow2", _qcow(lambda version: version >= 2)),
    ("qed", _at(0, b"QED\0")),
    ("vmdk", _at(0, b"KDMV", b"COWD", b"\xbe\xba\xfe\xca\0\0\0\0")),
    ("vmdk", _is_vmdk_text),
    ("vmdk", lambda _head, tail: b"KDMV" in (tail[-1536:-1532], tail[-1024:-1020], tail[-512:-508])),
    ("vhd", _at(0, b"conectix")),
    ("vhd", _near_end(b"conectix")),
    ("vhdx", _at(0, b"vhdxfile")),
    ("vdi", _at(64, b"\x7f\x10\xda\xbe")),
    ("parallels", _at(0, b"WithoutFreeSpace", b"WithouFreSpacExt")),
    ("luks", _at(0, b"LUKS\xba\xbe", b"SKUL\xba\xbe")),
    ("bochs", _at(0, b"Bochs Virtual HD Image")),
    ("cloop", _at(0, b"#!/bin/sh\n#V2.0 Format\n", b"#!/bin/sh\n#V1.0 Format\n")),
    ("dmg", _at(0, b"koly")),
    ("dmg", _near_end(b"koly")),
    ("asif", _at(0, b"shdw")),
    ("ewf", _at(0, b"EVF\x09\x0d\x0a\xff\0")),
    ("aff", _at(0, b"AFF10\r\n\0")),
    ("gzip", _at(0, b"\x1f\x8b\x08")),
    ("xz", _at(0, b"\xfd7zXZ\0")),
    ("zstd", _at(0, b"\x28\xb5\x2f\xfd")),
    ("bzip2", _at(0, *(b"BZh%d1AY&SY" % level for level in range(1, 10)))),
    ("lz4", _at(0, b"\x04\x22\x4d\x18")),
    ("zip", _at(0, b"PK\x03\x04")),
    ("7z", _at(0, b"7z\xbc\xaf\x27\x1c")),
    ("tar", _at(257, b"ustar\0", b"ustar ")),
    ("wim", _at(0, b"MSWIM\0\0\0")),
)

# --- qcow2 ---------------------------------------------------------------------------------------------------------

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_V3_LENGTH = 104

_L1_LIMIT = 32 << 20
_REFCOUNT_TABLE_LIMIT = 8 << 20
_EXTENSION_LIMIT = 16

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))

_FEATURE_NAMES = 0x6803F857
_FORBIDDEN_EXTENSIONS = {
    0xE2792ACA: ("H03", "the name of a backing format"),
    0x44415441: ("H02", "the name of an external data file"),
    0x23852875: ("H05", "bitmaps"),
    0x0537BE77: ("H05", "encryption"),
}


@dataclass(frozen=True, kw_only=True)
class _Header:
    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    incompatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = 72
    compression: int = 0

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def _qcow2_size(fd: int, file_size: int) -> int:
    """Check the whole header and the L1 table of a qcow2 image; answer with its virtual size."""
    header = _parse(os.pread(fd, 112, 0))
    _check_features(header)
    if file_size < header.cluster:
        raise _refused("H04", "its file ends within the header")
    _check_extensions(header, os.pread(fd, header.cluster, 0))
    _check_tables(header, file_size)
    _check_l1(fd, header, file_size)
    return header.size


def _parse(data: bytes) -> _Header:
    if len(data) < _V2.size:
        raise _refused("H04", "its header is cut off")
    (
        _magic, version, backing_offset, backing_length, cluster_bits, size, encryption, l1_entries, l1_offset,
        refcount_offset, refcount_clusters, snapshots, _snapshots_offset,
    ) = _V2.unpack_from(data)  # fmt: skip
    if version not in (2, 3):
        raise _refused("H04", f"its qcow2 version {version} is neither 2 nor 3")
    extra = _parse_v3(data) if version == 3 else {}
    return _Header(
        version=version,
        backing_offset=backing_offset,
        backing_length=backing_length,
        cluster_bits=cluster_bits,
        size=size,
        encryption=encryption,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        refcount_offset=refcount_offset,
        refcount_clusters=refcount_clusters,
        snapshots=snapshots,
        **extra,
    )


def _parse_v3(data: bytes) -> dict[str, int]:
    if len(data) < _V3_LENGTH:
        raise _refused("H04", "its header is cut off")
    incompatible, _compatible, autoclear, refcount_order, length = _V3.unpack_from(data, _V2.size)
    return {
        "incompatible": incompatible,
        "autoclear": autoclear,
        "refcount_order": refcount_order,
        "length": length,
        "compression": data[104] if length > _V3_LENGTH and len(data) > _V3_LENGTH else 0,
    }


def _check_features(header: _Header) -> None:
    if header.backing_offset:
        raise _refused("H01", "it names a backing file")
    if header.backing_length:
        raise _refused("H03", "its header gives the length of a backing file's name but no place")
    if not 9 <= header.cluster_bits <= 21:
        raise _refused("H04", f"its cluster_bits are {header.cluster_bits}, allowed are 9 to 21")
    if header.refcount_order > 6:
        raise _refused("H04", f"its refcount_order is {header.refcount_order}, allowed are 0 to 6")
    if header.encryption:
        raise _refused("H05", "it is encrypted")
    if header.snapshots:
        raise _refused("H05", f"it holds {header.snapshots} internal snapshots")
    if header.version == 3:
        if not _V3_LENGTH <= header.length <= header.cluster or header.length % 8:
            raise _refused("H04", f"its header length of {header.length} bytes is not possible")
        _check_feature_bits(header)


def _check_feature_bits(header: _Header) -> None:
    bits = header.incompatible
    if bits & _DATA_FILE:
        raise _refused("H02", "it keeps its data in an external file")
    if bits & (_DIRTY | _CORRUPT):
        raise _refused("H04", "it is marked dirty or corrupt: repair it first with qemu-img check -r all")
    if bits & _EXTENDED_L2:
        raise _refused("H05", "it uses extended L2 entries")
    if bits & ~_COMPRESSION:
        raise _refused("H04", f"it needs unknown features (incompatible bits {bits:#x})")
    if header.autoclear & 1:
        raise _refused("H05", "it holds bitmaps")
    if header.autoclear:
        raise _refused("H02", f"it uses features that are not supported (autoclear bits {header.autoclear:#x})")
    if header.compression not in (0, 1) or bool(bits & _COMPRESSION) != bool(header.compression):
        raise _refused("H04", "its compression type is unknown or contradicts its feature bits")


def _check_extensions(header: _Header, cluster: bytes) -> None:
    """Every header extension is known and harmless, and nothing but zeros follows the last one.

    The zeros leave no room for a second format (a partition table, an ISO image) in the same file (H09).
    """
    end = header.length
    seen: set[int] = set()
    for kind, after in _extensions(cluster, header.length):
        end = after
        if kind in _FORBIDDEN_EXTENSIONS:
            case, what = _FORBIDDEN_EXTENSIONS[kind]
            raise _refused(case, f"its header carries {what}")
        if kind != _FEATURE_NAMES or kind in seen:
            raise _refused("H06", f"its header carries the unknown or repeated extension {kind:#010x}")
        seen.add(kind)
    if any(cluster[end:]):
        raise _refused("H09", "its first cluster holds something after the header")


def _extensions(cluster: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Each extension's type and the offset where it ends."""
    for _ in range(_EXTENSION_LIMIT):
        if offset + 8 > len(cluster):
            raise _refused("H06", "its list of header extensions has no end")
        kind, length = struct.unpack_from(">II", cluster, offset)
        if kind == 0:
            if length:
                raise _refused("H06", "its list of header extensions ends with a length")
            return
        offset += 8 + (length + 7) // 8 * 8
        if offset > len(cluster):
            raise _refused("H06", "a header extension is longer than the header's cluster")
        yield kind, offset
    raise _refused("H06", "it has too many header extensions")


def _check_tables(header: _Header, file_size: int) -> None:
    _check_size(header.size, SIZE_LIMIT)
    covered = header.cluster * (header.cluster // 8)
    needed = -(-header.size // covered)
    l1_bytes = header.l1_entries * 8
    if header.l1_entries < needed or l1_bytes > _L1_LIMIT:
        raise _refused("H07", f"its L1 table of {header.l1_entries} entries does not fit its size")
    refcount_bytes = header.refcount_clusters * header.cluster
    if not 0 < refcount_bytes <= _REFCOUNT_TABLE_LIMIT:
        raise _refused("H07", f"its refcount table of {header.refcount_clusters} clusters is not possible")
    places = sorted(
        [
            (header.l1_offset, l1_bytes, "L1 table"),
            (header.refcount_offset, refcount_bytes, "refcount table"),
        ]
    )
    free_from = header.cluster
    for offset, length, name in places:
        if offset % header.cluster or offset < free_from:
            raise _refused("H07", f"its {name} overlaps something else or is not aligned")
        if offset + length > file_size:
            raise _refused("H07", f"its {name} lies outside the file")
        free_from = offset + length


def _check_l1(fd: int, header: _Header, file_size: int) -> None:
    """Every L2 table lies in the file, is named once, and is none of the other tables."""
    l1_bytes = header.l1_entries * 8
    data = os.pread(fd, l1_bytes, header.l1_offset)
    if len(data) != l1_bytes:
        raise _refused("H15", "its file became shorter while it was read")
    tables = {
        *range(header.l1_offset, header.l1_offset + l1_bytes, header.cluster),
        *range(
            header.refcount_offset, header.refcount_offset + header.refcount_clusters * header.cluster, header.cluster
        ),
        0,
    }
    seen: set[int] = set()
    for (entry,) in struct.iter_unpack(">Q", data):
        offset = entry & 0x00FF_FFFF_FFFF_FE00
        if not offset:
            continue
        if offset % header.cluster or offset + header.cluster > file_size:
            raise _refused("H07", "an L2 table lies outside the file or is not aligned")
        if offset in tables or offset in seen:
            raise _refused("H07", "an L2 table is named twice or overlaps another table")
        seen.add(offset)

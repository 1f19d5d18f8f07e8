# SPDX-License-Identifier: BSD-2-Clause
"""Container formats: crafted headers, one row per trick, each with the number of its threat."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ganeti_plugin import containers
from ganeti_plugin.containers import Format, ImageRefusedError, judge

pytestmark = pytest.mark.unit

CLUSTER = 65536
SIZE = 1 << 30


def put(data: bytearray, offset: int, layout: str, *values: int | bytes) -> None:
    struct.pack_into(">" + layout, data, offset, *values)


def qcow2(version: int = 3) -> bytearray:
    """A sound, empty image as `qemu-img create` writes it: header, refcount table, refcount block, L1 table."""
    data = bytearray(4 * CLUSTER)
    put(data, 0, "4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, 16, SIZE, 0, 2, 3 * CLUSTER, CLUSTER, 1, 0, 0)
    if version == 3:
        put(data, 72, "QQQII", 0, 0, 0, 4, 112)
        put(data, 112, "II", 0x6803F857, 48)
    return data


def write(tmp_path: Path, data: bytes | bytearray) -> int:
    path = tmp_path / "image"
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize("version", [2, 3])
def test_sound_qcow2_is_accepted(tmp_path: Path, version: int) -> None:
    verdict = judge(write(tmp_path, qcow2(version)), "qcow2")
    assert (verdict.format, verdict.virtual_size, verdict.file_size) == (Format.QCOW2, SIZE, 4 * CLUSTER)


@pytest.mark.parametrize(
    "data",
    [
        bytes(1 << 20),
        b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa" + bytes(4096),  # boot sector
        bytes(512) + b"EFI PART" + bytes(8184),  # GPT
        bytes(32769) + b"CD001" + bytes(32762),  # ISO image
        bytes(1080) + b"\x53\xef" + bytes(966),  # bare ext4
    ],
)
def test_sound_raw_is_accepted(tmp_path: Path, data: bytes) -> None:
    verdict = judge(write(tmp_path, data), Format.RAW)
    assert (verdict.format, verdict.virtual_size) == (Format.RAW, len(data))


def edit(offset: int, layout: str, *values: int | bytes) -> Callable[[bytearray], None]:
    return lambda data: put(data, offset, layout, *values)


def backing(name: bytes) -> Callable[[bytearray], None]:
    def apply(data: bytearray) -> None:
        put(data, 8, "QI", 512, len(name))
        data[512 : 512 + len(name)] = name

    return apply


def extension(kind: int, payload: bytes) -> Callable[[bytearray], None]:
    def apply(data: bytearray) -> None:
        put(data, 168, "II", kind, len(payload))
        data[176 : 176 + len(payload)] = payload

    return apply


def many_extensions(data: bytearray) -> None:
    for number in range(40):
        put(data, 112 + number * 8, "II", 0x6803F857, 0)


QCOW2_TRICKS: list[tuple[str, str, Callable[[bytearray], None]]] = [
    *(
        ("H01", f"backing file {name!r}", backing(name))
        for name in (
            b"/etc/shadow", b"../../etc/shadow", b'json:{"driver":"file"}', b"nbd://10.0.0.1/x", b"ssh://h/x",
            b"/dev/sda", b"/proc/self/fd/3",
        )
    ),
    ("H01", "backing offset without a name", edit(8, "Q", 512)),
    ("H02", "external data file", edit(72, "Q", 4)),
    ("H02", "raw external data", edit(88, "Q", 2)),
    ("H02", "data file name in an extension only", extension(0x44415441, b"/etc/shadow")),
    ("H03", "backing format without a backing file", extension(0xE2792ACA, b"raw")),
    ("H03", "length of a backing name without a place", edit(16, "I", 11)),
    ("H04", "unknown incompatible bit", edit(72, "Q", 1 << 5)),
    ("H04", "highest incompatible bit", edit(72, "Q", 1 << 63)),
    ("H04", "dirty", edit(72, "Q", 1)),
    ("H04", "corrupt", edit(72, "Q", 2)),
    ("H04", "version 4", edit(4, "I", 4)),
    ("H04", "short header", edit(100, "I", 96)),
    ("H04", "odd header length", edit(100, "I", 109)),
    ("H04", "header longer than its cluster", edit(100, "I", CLUSTER + 8)),
    ("H04", "cluster_bits 8", edit(20, "I", 8)),
    ("H04", "cluster_bits 22", edit(20, "I", 22)),
    ("H04", "cluster_bits 2^31", edit(20, "I", 1 << 31)),
    ("H04", "refcount order 7", edit(96, "I", 7)),
    ("H04", "compression type without its bit", edit(104, "B", 1)),
    ("H04", "compression bit without a type", edit(72, "Q", 8)),
    ("H05", "AES", edit(32, "I", 1)),
    ("H05", "LUKS", edit(32, "I", 2)),
    ("H05", "crypto extension", extension(0x0537BE77, bytes(16))),
    ("H05", "internal snapshots", edit(60, "I", 1)),
    ("H05", "bitmaps bit", edit(88, "Q", 1)),
    ("H05", "bitmaps extension", extension(0x23852875, bytes(24))),
    ("H05", "extended L2", edit(72, "Q", 16)),
    ("H06", "extension longer than everything", edit(116, "I", 0xFFFFFFF8)),
    ("H06", "extension longer than the cluster", edit(116, "I", CLUSTER)),
    ("H06", "extensions without end", many_extensions),
    ("H06", "unknown extension", extension(0x12345678, b"x")),
    ("H06", "repeated extension", extension(0x6803F857, bytes(48))),
    ("H06", "end with a length", edit(168, "II", 0, 8)),
    ("H07", "L1 outside the file", edit(40, "Q", 1 << 40)),
    ("H07", "L1 over the header", edit(40, "Q", 0)),
    ("H07", "L1 not aligned", edit(40, "Q", 3 * CLUSTER + 512)),
    ("H07", "L1 is the refcount table", edit(40, "Q", CLUSTER)),
    ("H07", "huge L1", edit(36, "I", 0xFFFFFFFF)),
    ("H07", "L1 too short", edit(36, "I", 1)),
    ("H07", "no refcount table", edit(56, "I", 0)),
    ("H07", "huge refcount table", edit(56, "I", 0x10000)),
    ("H07", "refcount table outside the file", edit(48, "Q", 1 << 50)),
    ("H07", "L2 is the L1", edit(3 * CLUSTER, "Q", 3 * CLUSTER | 1 << 63)),
    ("H07", "L2 is the header, not aligned", edit(3 * CLUSTER, "Q", 512)),
    ("H07", "L2 outside the file", edit(3 * CLUSTER, "Q", 1 << 45)),
    ("H07", "the same L2 twice", edit(3 * CLUSTER, "QQ", 2 * CLUSTER, 2 * CLUSTER)),
    ("H09", "boot sector in the header's cluster", edit(510, "H", 0x55AA)),
    ("H09", "GPT in the header's cluster", edit(512, "8s", b"EFI PART")),
    ("H09", "ISO in the header's cluster", edit(32769, "5s", b"CD001")),
    ("H09", "VHD footer", edit(4 * CLUSTER - 512, "8s", b"conectix")),
    ("H09", "dmg footer", edit(4 * CLUSTER - 512, "4s", b"koly")),
    ("H09", "VDI signature", edit(64, "I", 0x7F10DABE)),
    ("H20", "zero size", edit(24, "Q", 0)),
    ("H20", "size 2^63", edit(24, "Q", 1 << 63)),
    ("H20", "size of all ones", edit(24, "Q", (1 << 64) - 1)),
    ("H20", "size not of whole sectors", edit(24, "Q", SIZE - 1)),
]  # fmt: skip


@pytest.mark.parametrize(("case", "trick", "apply"), QCOW2_TRICKS, ids=[f"{c}-{t}" for c, t, _ in QCOW2_TRICKS])
def test_qcow2_trick_is_refused(tmp_path: Path, case: str, trick: str, apply: Callable[[bytearray], None]) -> None:
    data = qcow2()
    apply(data)
    with pytest.raises(ImageRefusedError) as caught:
        judge(write(tmp_path, data), "qcow2")
    assert caught.value.facts["case"] == case, trick
    assert "\n" not in str(caught.value)


def with_head(magic: bytes, offset: int = 0) -> bytes:
    return bytes(offset) + magic + bytes(128 * 1024 - offset - len(magic))


def with_tail(magic: bytes, back: int = 512) -> bytes:
    return bytes(128 * 1024 - back) + magic + bytes(back - len(magic))


SIGNATURES: list[tuple[str, bytes]] = [
    ("qcow", with_head(b"QFI\xfb\0\0\0\x01")),
    ("qcow", with_head(b"QFI\xfb\0\0\0\0")),
    ("qcow2", bytes(qcow2())),
    ("qcow2", with_head(b"QFI\xfb\0\0\0\x09")),
    ("qed", with_head(b"QED\0")),
    ("vmdk", with_head(b"KDMV\x01")),
    ("vmdk", with_head(b"COWD")),
    ("vmdk", with_head(b"# Disk DescriptorFile\nversion=1\n")),
    ("vmdk", with_head(b'\n# anything\n\nversion=1\nRW 1 FLAT "/etc/shadow" 0\n')),
    ("vmdk", with_tail(b"KDMV", 1024)),
    ("vhd", with_head(b"conectix")),
    ("vhd", with_tail(b"conectix")),
    ("vhd", with_tail(b"conectix", 511)),
    ("vhdx", with_head(b"vhdxfile")),
    ("vdi", with_head(b"\x7f\x10\xda\xbe", 64)),
    ("parallels", with_head(b"WithoutFreeSpace")),
    ("parallels", with_head(b"WithouFreSpacExt")),
    ("luks", with_head(b"LUKS\xba\xbe\0\x01")),
    ("luks", with_head(b"LUKS\xba\xbe\0\x02")),
    ("bochs", with_head(b"Bochs Virtual HD Image\0")),
    ("cloop", with_head(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop")),
    ("dmg", with_tail(b"koly")),
    ("gzip", with_head(b"\x1f\x8b\x08")),
    ("xz", with_head(b"\xfd7zXZ\0")),
    ("zstd", with_head(b"\x28\xb5\x2f\xfd")),
    ("tar", with_head(b"ustar\0", 257)),
]


@pytest.mark.parametrize(("name", "data"), SIGNATURES)
def test_declared_raw_with_a_signature_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    """H08."""
    with pytest.raises(ImageRefusedError, match=f"declared raw but carries the signature of .*{name}") as caught:
        judge(write(tmp_path, data), "raw")
    assert caught.value.facts["case"] == "H08"


@pytest.mark.parametrize(("name", "data"), [row for row in SIGNATURES if row[0] != "qcow2"])
def test_declared_qcow2_but_other_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    """H09."""
    with pytest.raises(ImageRefusedError, match=name) as caught:
        judge(write(tmp_path, data), "qcow2")
    assert caught.value.facts["case"] == "H09"


def test_declared_qcow2_but_raw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageRefusedError, match="declared qcow2 but looks like raw"):
        judge(write(tmp_path, bytes(1 << 20)), "qcow2")


@pytest.mark.parametrize("declared", ["vvfat", "curl", "quorum", "blkverify", "qed", "vmdk", "nbd", "", "RAW", "raw\n"])
def test_formats_are_a_closed_list(tmp_path: Path, declared: str) -> None:
    """H12."""
    with pytest.raises(ImageRefusedError) as caught:
        judge(write(tmp_path, bytes(4096)), declared)
    assert caught.value.facts["case"] == "H12"


@pytest.mark.parametrize("length", [0, 1, 511, 513, 1048577])
def test_raw_sizes_that_are_no_disk(tmp_path: Path, length: int) -> None:
    """H20."""
    with pytest.raises(ImageRefusedError) as caught:
        judge(write(tmp_path, bytes(length)), "raw")
    assert caught.value.facts["case"] == "H20"


def test_size_limit(tmp_path: Path) -> None:
    with pytest.raises(ImageRefusedError, match="above the limit"):
        judge(write(tmp_path, qcow2()), "qcow2", size_limit=SIZE - 1)


@pytest.mark.parametrize("length", [1, 4, 8, 71, 72, 103, 104, 512, CLUSTER - 1, CLUSTER, 3 * CLUSTER])
def test_truncated_qcow2_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ImageRefusedError):
        judge(write(tmp_path, bytes(qcow2())[:length]), "qcow2")


def test_random_headers_never_end_in_anything_but_a_verdict(tmp_path: Path) -> None:
    """A thousand flips of header bytes with a fixed seed: accepted or refused, never another error."""
    import random

    rng = random.Random(5)
    for _ in range(1000):
        data = qcow2(rng.choice((2, 3)))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(4, 180)] = rng.randrange(256)
        fd = write(tmp_path, data)
        try:
            assert judge(fd, "qcow2").virtual_size <= containers.SIZE_LIMIT
        except ImageRefusedError:
            pass
        finally:
            os.close(fd)

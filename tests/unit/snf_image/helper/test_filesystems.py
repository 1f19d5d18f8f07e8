# SPDX-License-Identifier: BSD-2-Clause
"""What a partition's first bytes claim. Real file systems are identified in tests/real."""

from __future__ import annotations

import pytest

from snf_image.helper import filesystems
from snf_image.helper.filesystems import WINDOW, FileSystem


def at(*pieces: tuple[int, bytes]) -> bytes:
    data = bytearray(WINDOW)
    for offset, piece in pieces:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


UUID = bytes(range(16))
TEXT = "00010203-0405-0607-0809-0a0b0c0d0e0f"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (at((1080, b"\x53\xef\x01\0"), (1128, UUID), (1144, b"root")), FileSystem("ext4", TEXT, "root", "clean")),
        (at((1080, b"\x53\xef\x03\0"), (1128, UUID)), FileSystem("ext4", TEXT, "", "dirty")),
        (at((1080, b"\x53\xef\x01\0"), (1120, b"\x04"), (1128, UUID)), FileSystem("ext4", TEXT, "", "dirty")),
        (at((0, b"XFSB"), (32, UUID), (108, b"data")), FileSystem("xfs", TEXT, "data")),
        (at((65600, b"_BHRfS_M"), (65568, UUID)), FileSystem("btrfs", TEXT)),
        (
            at((510, b"\x55\xaa"), (82, b"FAT32   "), (67, b"\x78\x56\x34\x12"), (71, b"EFI        ")),
            FileSystem("vfat", "1234-5678", "EFI"),
        ),
        (bytes(WINDOW), None),
        (b"", None),
    ],
)
def test_identify(data: bytes, expected: FileSystem | None) -> None:
    assert filesystems.identify(data) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (at((0, b"LUKS\xba\xbe")), "is encrypted (LUKS)"),
        (at((512, b"LABELONE")), "is an LVM physical volume"),
        (at((4096, b"\xfc\x4e\x2b\xa9")), "belongs to a software RAID"),
        (bytes(WINDOW), None),
    ],
)
def test_obstacles(data: bytes, reason: str | None) -> None:
    assert filesystems.obstacle(data) == reason

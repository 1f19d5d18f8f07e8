# SPDX-License-Identifier: BSD-2-Clause
"""Partition tables, sane and hostile. The grown ones are read back by sfdisk in tests/real."""

from __future__ import annotations

from binascii import crc32
from collections.abc import Callable

import pytest

from snf_image.helper import partitions
from snf_image.helper.errors import TaskError
from snf_image.helper.partitions import SECTOR

SECTORS = 40960
LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")


class Disk:
    def __init__(self, sectors: int = SECTORS) -> None:
        self.data = bytearray(sectors * SECTOR)

    def read(self, first: int, count: int) -> bytes:
        return bytes(self.data[first * SECTOR : (first + count) * SECTOR])

    def write(self, first: int, data: bytes) -> None:
        self.data[first * SECTOR : first * SECTOR + len(data)] = data

    @property
    def sectors(self) -> int:
        return len(self.data) // SECTOR

    def table(self) -> partitions.Table:
        return partitions.read(self.read, self.sectors)

    def grow(self) -> partitions.Partition:
        writes, grown = partitions.grow_last(self.read, self.table(), self.sectors)
        for first, data in writes:
            self.write(first, data)
        return grown


def boot_record(*entries: tuple[int, int, int]) -> bytes:
    sector = bytearray(SECTOR)
    for slot, (kind, first, size) in enumerate(entries):
        start = 446 + 16 * slot
        sector[start + 4] = kind
        sector[start + 8 : start + 16] = first.to_bytes(4, "little") + size.to_bytes(4, "little")
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def msdos(*entries: tuple[int, int, int]) -> Disk:
    disk = Disk()
    disk.write(0, boot_record(*entries))
    return disk


def gpt(*ranges: tuple[int, int], size: int = 8192, count: int = 128, change: bytes = b"") -> Disk:
    """A table made for a disk of `size` sectors, at the start of a larger one."""
    disk = Disk()
    disk.write(0, boot_record((0xEE, 1, size - 1)))
    entries = bytearray(count * 128)
    for slot, (first, last) in enumerate(ranges):
        raw = LINUX + bytes([slot + 1] * 16) + first.to_bytes(8, "little") + last.to_bytes(8, "little") + bytes(8)
        entries[slot * 128 : slot * 128 + 128] = (raw + "röot".encode("utf-16-le")).ljust(128, b"\0")
    disk.write(2, bytes(entries))
    write_header(disk, bytes(entries), size, count)
    return disk


def write_header(disk: Disk, entries: bytes, size: int, count: int) -> None:
    header = bytearray(92)
    header[:16] = b"EFI PART" + (0x10000).to_bytes(4, "little") + (92).to_bytes(4, "little")
    for offset, value in ((24, 1), (32, size - 1), (40, 34), (48, size - 34), (72, 2)):
        header[offset : offset + 8] = value.to_bytes(8, "little")
    for offset, value in ((80, count), (84, 128), (88, crc32(entries))):
        header[offset : offset + 4] = value.to_bytes(4, "little")
    header[16:20] = crc32(bytes(header)).to_bytes(4, "little")
    disk.write(1, bytes(header))


def test_msdos_grows_to_the_end() -> None:
    disk = msdos((0x83, 2048, 4096))
    grown = disk.grow()
    assert (grown.number, grown.first, grown.last) == (1, 2048, SECTORS - 2048 - 1)
    assert disk.table().last == grown


def test_growing_twice_changes_nothing() -> None:
    disk = msdos((0x83, 2048, 4096))
    disk.grow()
    before = bytes(disk.data)
    disk.grow()
    assert bytes(disk.data) == before


def test_only_the_last_partition_grows() -> None:
    disk = msdos((0x83, 2048, 4096), (0x82, 8192, 2048))
    assert disk.grow().number == 2
    assert disk.table().partitions[0].last == 2048 + 4096 - 1


def test_a_full_disk_stays_as_it_is() -> None:
    disk = msdos((0x83, 2048, SECTORS - 2048))
    assert partitions.grow_last(disk.read, disk.table(), SECTORS)[0] == ()


def logical() -> Disk:
    disk = msdos((0x83, 2048, 4096), (0x05, 8192, 16384))
    disk.write(8192, boot_record((0x83, 2048, 2048), (0x05, 8192, 6144)))
    disk.write(16384, boot_record((0x83, 2048, 4096)))
    return disk


def test_the_last_logical_partition_grows_with_the_extended_one() -> None:
    disk = logical()
    assert [each.number for each in disk.table().partitions] == [1, 2, 5, 6]
    grown = disk.grow()
    assert (grown.number, grown.last) == (6, SECTORS - 2048 - 1)
    table = disk.table()
    assert table.last == grown
    assert table.partitions[1].last == grown.last


def test_gpt_grows_and_the_copy_moves() -> None:
    disk = gpt((2048, 4095))
    grown = disk.grow()
    assert grown.last == 38911
    assert grown.label == "röot"
    assert grown.is_linux
    assert disk.table().last == grown
    assert disk.read(SECTORS - 1, 1)[:8] == b"EFI PART"
    assert int.from_bytes(disk.read(SECTORS - 1, 1)[72:80], "little") == SECTORS - 33
    assert disk.read(SECTORS - 33, 32) == disk.read(2, 32)
    assert int.from_bytes(disk.read(0, 1)[458:462], "little") == SECTORS - 1


@pytest.mark.parametrize("raw", [bytes(SECTOR), b"\xeb\x3c\x90" + bytes(507) + b"\x55\xaa"[:2]])
def test_no_table(raw: bytes) -> None:
    disk = Disk()
    disk.write(0, raw)
    with pytest.raises(TaskError, match="partition"):
        disk.table()


def test_a_file_system_without_a_table() -> None:
    disk = Disk()
    disk.write(0, b"\xeb\x3c\x90".ljust(446, b"x") + b"y" * 64 + b"\x55\xaa")
    with pytest.raises(TaskError, match="has no partition table"):
        disk.table()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: msdos((0x83, 2048, 4096), (0x83, 4096, 4096)), "overlap"),
        (lambda: msdos((0x83, 2048, SECTORS)), "beyond the end"),
        (lambda: msdos((0x83, 0, 100)), "no sane start"),
        (lambda: msdos((0x83, 2048, 0)), "has no partition"),
        (lambda: msdos((0x05, 2048, 4096)), "has no partition"),
        (lambda: msdos((0x05, 2048, 4096), (0x05, 8192, 4096)), "has no partition"),
        (gpt, "has no partition"),
        (lambda: gpt((2048, 4095), (4000, 5000)), "overlap"),
        (lambda: gpt((20, 4095)), "inside the partition table"),
        (lambda: gpt((4095, 2048)), "no sane start"),
        (lambda: gpt((2048, SECTORS)), "beyond the end"),
    ],
)
def test_a_table_that_makes_no_sense(make: Callable[[], Disk], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        make().table()


def test_a_loop_of_logical_partitions_ends() -> None:
    disk = logical()
    disk.write(16384, boot_record((0x83, 2048, 4096), (0x05, 0, 100)))
    with pytest.raises(TaskError, match="backwards"):
        disk.table()


def test_a_very_long_chain_ends() -> None:
    disk = msdos((0x05, 2048, SECTORS - 2048))
    for number in range(100):
        disk.write(2048 + 4 * number, boot_record((0x83, 1, 1), (0x05, 4 * (number + 1), 4)))
    with pytest.raises(TaskError, match="too long"):
        disk.table()


@pytest.mark.parametrize("offset", [SECTOR + 8, SECTOR + 40, 2 * SECTOR + 60])
def test_a_damaged_gpt(offset: int) -> None:
    disk = gpt((2048, 4095))
    disk.data[offset] ^= 0xFF
    with pytest.raises(TaskError, match="damaged"):
        disk.table()


@pytest.mark.parametrize("count", [0, 100_000])
def test_an_absurd_number_of_entries(count: int) -> None:
    disk = gpt((2048, 4095))
    write_header(disk, b"", 8192, count)
    with pytest.raises(TaskError, match="not supported"):
        disk.table()


def test_guid() -> None:
    assert partitions.guid(LINUX) == "0fc63daf-8483-4772-8e79-3d69d8477de4"

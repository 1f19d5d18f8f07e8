# SPDX-License-Identifier: BSD-2-Clause
"""Reads partition tables of hostile disks, bounded, and grows the last partition to the end of the disk (threat H32).

Pure: `read` takes a function that returns sectors, `grow_last` answers with the sectors to write. Nothing is repaired
silently: a table that contradicts itself is an error, and the disk stays as it is.
"""

from __future__ import annotations

import dataclasses
from binascii import crc32
from collections.abc import Callable

from snf_image.helper.errors import TaskError

SECTOR = 512

#: Sectors that stay free behind the last partition of an msdos table (as the original leaves them), and its alignment.
TAIL = 2048
ALIGNMENT = 2048

#: GPT: entries of a sane table, and their size.
ENTRIES_LIMIT = 256
ENTRY_SIZES = (128, 256, 512)

LOGICAL_LIMIT = 60
EXTENDED_TYPES = (0x05, 0x0F, 0x85)

#: Types that may hold a Linux root file system: MBR 83; GPT: Linux data, root (x86, x86-64, arm64), /usr-less generic.
LINUX_TYPES = frozenset(
    {
        "83",
        "0fc63daf-8483-4772-8e79-3d69d8477de4",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        "44479540-f297-41b2-9af7-d131d5f0458a",
        "b921b045-1df0-41c3-af44-4c6f280d3fae",
    }
)

Read = Callable[[int, int], bytes]
Writes = tuple[tuple[int, bytes], ...]


@dataclasses.dataclass(frozen=True)
class Partition:
    """`first` and `last` are sectors, both inclusive; `kind` is two hex digits or a GPT type; `slot` locates it.

    `slot` is the index of a GPT entry or primary MBR entry; for a logical partition, the sector of its boot record.
    """

    number: int
    first: int
    last: int
    kind: str
    slot: int
    uuid: str = ""
    label: str = ""

    @property
    def is_extended(self) -> bool:
        return len(self.kind) == 2 and int(self.kind, 16) in EXTENDED_TYPES

    @property
    def is_linux(self) -> bool:
        return self.kind in LINUX_TYPES


@dataclasses.dataclass(frozen=True)
class Table:
    kind: str  # "msdos" or "gpt"
    partitions: tuple[Partition, ...]
    header: bytes = b""
    entries: bytes = b""

    @property
    def last(self) -> Partition:
        """The partition (not an extended one) that ends last."""
        return max((each for each in self.partitions if not each.is_extended), key=lambda each: each.last)


def read(read_sectors: Read, sectors: int) -> Table:
    """The table of a disk of `sectors` sectors. TaskError when there is none or it makes no sense."""
    boot = read_sectors(0, 1)
    if len(boot) != SECTOR or boot[510:512] != b"\x55\xaa":
        raise TaskError("the image has no partition table")
    if any(boot[446 + 16 * slot + 4] == 0xEE for slot in range(4)):
        table = _read_gpt(read_sectors, sectors)
    else:
        table = _read_msdos(read_sectors, boot, sectors)
    _check_order(table.partitions, sectors)
    return table


def _check_order(partitions: tuple[Partition, ...], sectors: int) -> None:
    plain = sorted((each for each in partitions if not each.is_extended), key=lambda each: each.first)
    if not plain:
        raise TaskError("the image's partition table has no partition")
    for each in partitions:
        if not 0 < each.first <= each.last:
            raise TaskError(f"partition {each.number} of the image has no sane start and end")
        if each.last >= sectors:
            raise TaskError(f"partition {each.number} of the image ends beyond the end of the disk")
    for one, other in zip(plain, plain[1:], strict=False):
        if other.first <= one.last:
            raise TaskError(f"partitions {one.number} and {other.number} of the image overlap")


# --- msdos -----------------------------------------------------------------------------------------------------------


def _entry(sector: bytes, slot: int) -> tuple[int, int, int]:
    """Type, first sector (relative), number of sectors."""
    raw = sector[446 + 16 * slot : 462 + 16 * slot]
    return raw[4], int.from_bytes(raw[8:12], "little"), int.from_bytes(raw[12:16], "little")


def _with_size(sector: bytes, slot: int, size: int) -> bytes:
    """The sector with another number of sectors in an entry; the CHS end says "see LBA"."""
    start = 446 + 16 * slot
    return sector[: start + 5] + b"\xfe\xff\xff" + sector[start + 8 : start + 12] + _u32(size) + sector[start + 16 :]


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _read_msdos(read_sectors: Read, boot: bytes, sectors: int) -> Table:
    if any(boot[446 + 16 * slot] not in (0x00, 0x80) for slot in range(4)):
        raise TaskError("the image has no partition table")  # a file system's boot sector ends in 55 AA too
    identity = boot[440:444][::-1].hex()
    found: list[Partition] = []
    logical: list[Partition] = []
    for slot in range(4):
        kind, first, size = _entry(boot, slot)
        if kind == 0 or size == 0:
            continue
        partition = Partition(slot + 1, first, first + size - 1, f"{kind:02x}", slot, f"{identity}-{slot + 1:02x}")
        found.append(partition)
        if partition.is_extended:
            if logical:
                raise TaskError("the image has more than one extended partition")
            logical = _read_logical(read_sectors, partition, identity, sectors)
    return Table("msdos", tuple(found + logical), header=boot)


def _read_logical(read_sectors: Read, extended: Partition, identity: str, sectors: int) -> list[Partition]:
    found: list[Partition] = []
    record = extended.first
    while True:
        if not extended.first <= record <= extended.last or record >= sectors:
            raise TaskError("a logical partition of the image lies outside the extended one")
        sector = read_sectors(record, 1)
        if sector[510:512] != b"\x55\xaa":
            if record == extended.first:
                return found  # an extended partition that was never filled
            raise TaskError("the image's chain of logical partitions is broken")
        kind, first, size = _entry(sector, 0)
        if kind and size:
            number, start = 5 + len(found), record + first
            uuid = f"{identity}-{number:02x}"
            found.append(Partition(number, start, start + size - 1, f"{kind:02x}", record, uuid))
            if start + size - 1 > extended.last:
                raise TaskError(f"partition {number} of the image ends outside the extended one")
        next_kind, next_first, next_size = _entry(sector, 1)
        if not next_kind or not next_size:
            return found
        if extended.first + next_first <= record or len(found) >= LOGICAL_LIMIT:
            raise TaskError("the image's chain of logical partitions goes backwards or is too long")
        record = extended.first + next_first


def _msdos_end(first: int, sectors: int) -> int:
    """The last sector of a partition that starts at `first` and takes what the disk has."""
    limit = min(sectors - TAIL, first + 0xFFFFFFFF)
    return limit // ALIGNMENT * ALIGNMENT - 1


def _grow_msdos(read_sectors: Read, table: Table, sectors: int) -> tuple[Writes, Partition]:
    last = table.last
    end = _msdos_end(last.first, sectors)
    if end <= last.last:
        return (), last
    grown = dataclasses.replace(last, last=end)
    if last.number <= 4:
        return ((0, _with_size(table.header, last.slot, end - last.first + 1)),), grown
    extended = next(each for each in table.partitions if each.is_extended)
    end = min(end, _msdos_end(extended.first, sectors))
    if end <= last.last or extended.last > end:
        return (), last
    grown = dataclasses.replace(last, last=end)
    writes = [(0, _with_size(table.header, extended.slot, end - extended.first + 1))]
    writes.append((last.slot, _with_size(read_sectors(last.slot, 1), 0, end - last.first + 1)))
    before = [each for each in table.partitions if each.number == last.number - 1 and each.number > 4]
    if before:
        writes.append((before[0].slot, _with_size(read_sectors(before[0].slot, 1), 1, end - last.slot + 1)))
    return tuple(writes), grown


# --- GPT -------------------------------------------------------------------------------------------------------------


def _u64_at(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def _u32_at(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def guid(raw: bytes) -> str:
    """Sixteen bytes as GPT stores them, in the usual notation."""
    parts = (raw[3::-1], raw[5:3:-1], raw[7:5:-1], raw[8:10], raw[10:16])
    return "-".join(part.hex() for part in parts)


def _read_gpt(read_sectors: Read, sectors: int) -> Table:
    header = read_sectors(1, 1)
    size = _u32_at(header, 12)
    if header[:8] != b"EFI PART" or not 92 <= size <= SECTOR:
        raise TaskError("the image's GPT has no valid header")
    body = header[:16] + bytes(4) + header[20:size]
    if crc32(body) != _u32_at(header, 16) or _u64_at(header, 24) != 1:
        raise TaskError("the image's GPT header is damaged")
    entries = _read_entries(read_sectors, header, sectors)
    width = _u32_at(header, 84)
    first_usable = _u64_at(header, 40)
    found = []
    for slot in range(_u32_at(header, 80)):
        raw = entries[slot * width : (slot + 1) * width]
        if raw[:16] == bytes(16):
            continue
        first, last = _u64_at(raw, 32), _u64_at(raw, 40)
        if first < first_usable:
            raise TaskError(f"partition {slot + 1} of the image starts inside the partition table")
        label = raw[56:128].decode("utf-16-le", "replace").split("\0")[0]
        found.append(Partition(slot + 1, first, last, guid(raw[:16]), slot, guid(raw[16:32]), label))
    return Table("gpt", tuple(found), header=header, entries=entries)


def _read_entries(read_sectors: Read, header: bytes, sectors: int) -> bytes:
    start, count, width = _u64_at(header, 72), _u32_at(header, 80), _u32_at(header, 84)
    if not 1 <= count <= ENTRIES_LIMIT or width not in ENTRY_SIZES:
        raise TaskError(f"the image's GPT has {count} entries of {width} bytes, which is not supported")
    length = -(-count * width // SECTOR)
    if not 2 <= start <= sectors - length or start + length > _u64_at(header, 40):
        raise TaskError("the entries of the image's GPT are at an impossible place")
    entries = read_sectors(start, length)
    if len(entries) != length * SECTOR or crc32(entries[: count * width]) != _u32_at(header, 88):
        raise TaskError("the entries of the image's GPT are damaged")
    return entries


def _header(old: bytes, *, own: int, other: int, entries_at: int, last_usable: int, entries_crc: int) -> bytes:
    size = _u32_at(old, 12)
    body = bytearray(old[:size])
    body[16:20] = bytes(4)
    for offset, value in ((24, own), (32, other), (48, last_usable), (72, entries_at)):
        body[offset : offset + 8] = value.to_bytes(8, "little")
    body[88:92] = _u32(entries_crc)
    body[16:20] = _u32(crc32(bytes(body)))
    return bytes(body) + old[size:]


def _grow_gpt(read_sectors: Read, table: Table, sectors: int) -> tuple[Writes, Partition]:
    last, header = table.last, table.header
    length = len(table.entries) // SECTOR
    last_usable = sectors - length - 2
    end = max((last_usable + 1) // ALIGNMENT * ALIGNMENT - 1, last.last)
    if end > last_usable:
        raise TaskError("the disk has no room for the second copy of the image's GPT")
    count, width = _u32_at(header, 80), _u32_at(header, 84)
    entries = bytearray(table.entries)
    entries[last.slot * width + 40 : last.slot * width + 48] = end.to_bytes(8, "little")
    digest = crc32(bytes(entries[: count * width]))
    entries_at = _u64_at(header, 72)
    tail = sectors - 1
    primary = _header(header, own=1, other=tail, entries_at=entries_at, last_usable=last_usable, entries_crc=digest)
    backup = _header(header, own=tail, other=1, entries_at=tail - length, last_usable=last_usable, entries_crc=digest)
    raw = bytes(entries)
    writes = [(tail - length, raw), (tail, backup), (entries_at, raw), (1, primary)]
    boot = read_sectors(0, 1)
    slot = next(each for each in range(4) if boot[446 + 16 * each + 4] == 0xEE)
    _, first, _ = _entry(boot, slot)
    if first == 1:
        writes.append((0, _with_size(boot, slot, min(sectors - 1, 0xFFFFFFFF))))
    return tuple(writes), dataclasses.replace(last, last=end)


def grow_last(read_sectors: Read, table: Table, sectors: int) -> tuple[Writes, Partition]:
    """What to write, in this order, so that the last partition reaches the end; and the partition as it is then."""
    return (_grow_gpt if table.kind == "gpt" else _grow_msdos)(read_sectors, table, sectors)

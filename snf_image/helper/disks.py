# SPDX-License-Identifier: BSD-2-Clause
"""Finds the instance's disks by their serial numbers and gives bounded access to them.

The disks may be plugged in after the helper started, so finding is waiting with a deadline.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

from snf_image.helper import syscalls
from snf_image.helper.errors import TaskError
from snf_image.helper.partitions import SECTOR, Partition, Writes
from snf_image.protocol import Disk

SYS_BLOCK = "/sys/block"

#: Writing here makes the kernel look for devices that came without a word: those of a restored machine.
PCI_RESCAN = "/sys/bus/pci/rescan"

#: Seconds until every disk of the request must be there.
WAIT = 20.0


@dataclasses.dataclass(frozen=True)
class DiskDevice:
    index: int
    path: str
    sectors: int

    def read_sectors(self, first: int, count: int) -> bytes:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, count * SECTOR, first * SECTOR)
        finally:
            os.close(descriptor)

    def write_sectors(self, writes: Writes) -> None:
        """Write, sync, and have the kernel read the partition table again."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for first, data in writes:
                if os.pwrite(descriptor, data, first * SECTOR) != len(data):
                    raise TaskError(f"disk {self.index} took only a part of its partition table")
            os.fsync(descriptor)
            syscalls.reread_partitions(descriptor)
        finally:
            os.close(descriptor)

    def zero(self, start: int, length: int) -> None:
        """Make bytes read as zeros."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            syscalls.zero_out(descriptor, start, length)
        finally:
            os.close(descriptor)

    def read_start(self, partition: Partition, length: int) -> bytes:
        count = min(length // SECTOR, partition.last - partition.first + 1)
        return self.read_sectors(partition.first, count)

    def node_of(self, partition: Partition) -> str:
        return f"{self.path}{partition.number}"


def by_serial(root: str = SYS_BLOCK) -> dict[str, str]:
    """Serial number -> kernel name of every virtio disk there is now."""
    found = {}
    for name in os.listdir(root):
        if not name.startswith("vd"):
            continue
        try:
            with open(f"{root}/{name}/serial", "rb") as stream:
                found[stream.read(64).decode("ascii", "replace").strip()] = name
        except OSError:
            continue  # it is just coming or going
    return found


def wait_for(disks: Sequence[Disk], deadline: float) -> tuple[DiskDevice, ...]:
    """The devices of the request's disks, in their order. `deadline` is on the monotonic clock."""
    if {disk.serial for disk in disks} - by_serial().keys():
        rescan()
    while True:
        there = by_serial()
        missing = [disk.serial for disk in disks if disk.serial not in there]
        if not missing and all(os.path.exists(f"/dev/{there[disk.serial]}") for disk in disks):
            return tuple(_device(disk, there[disk.serial]) for disk in disks)
        if time.monotonic() >= deadline:
            raise TaskError(f"the disk with serial number {', '.join(missing)} did not appear")
        time.sleep(0.01)


def rescan() -> None:
    with open(PCI_RESCAN, "w", encoding="ascii") as stream:
        stream.write("1")


def _device(disk: Disk, name: str) -> DiskDevice:
    path = f"/dev/{name}"
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if syscalls.sector_size(descriptor) != SECTOR:
            raise TaskError(f"disk {disk.index} has sectors of another size than {SECTOR} bytes")
        return DiskDevice(disk.index, path, syscalls.disk_size(descriptor) // SECTOR)
    finally:
        os.close(descriptor)

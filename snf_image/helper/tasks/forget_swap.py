# SPDX-License-Identifier: BSD-2-Clause
"""ForgetSwap: what a machine had in its memory lies on its swap partitions. Their headers stay, so they are swap again.

A swap file keeps what it holds, with a warning: as it must have no holes, it would have to be written in full.
"""

from __future__ import annotations

from snf_image.helper import partitions
from snf_image.helper.disks import DiskDevice
from snf_image.helper.errors import TaskError
from snf_image.helper.partitions import SECTOR, Partition
from snf_image.helper.task import Context, Task

#: The header is one page, and ends with its signature (mkswap(8)).
PAGE = 4096
SIGNATURE = b"SWAPSPACE2"


def swaps(context: Context) -> list[tuple[DiskDevice, Partition]]:
    found: list[tuple[DiskDevice, Partition]] = []
    for disk in context.disks:
        try:
            table = partitions.read(disk.read_sectors, disk.sectors)
        except TaskError:
            continue  # MountImage has told what is to be told of the first one; further ones may be empty
        found += [(disk, each) for each in table.partitions if is_swap(disk, each)]
    return found


def is_swap(disk: DiskDevice, partition: Partition) -> bool:
    return not partition.is_extended and disk.read_start(partition, PAGE).endswith(SIGNATURE)


def swap_files(fstab: str) -> list[str]:
    lines = [line.split() for line in fstab.splitlines()]
    return [words[0] for words in lines if len(words) > 2 and words[2] == "swap" and words[0].startswith("/")]


def run(context: Context) -> None:
    found = swaps(context)
    for disk, partition in found:
        sectors = partition.last - partition.first + 1
        disk.zero(partition.first * SECTOR + PAGE, sectors * SECTOR - PAGE)
    context.facts["swap_partitions_cleared"] = str(len(found))
    for path in swap_files(context.tree.read_text("etc/fstab") or ""):
        if not path.startswith("/dev/") and context.tree.exists(path):
            context.warn(f"the swap file {path[:200]} keeps what it holds: remove it before the image is made")


TASK = Task(name="ForgetSwap", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

# SPDX-License-Identifier: BSD-2-Clause
"""FixPartitionTable: the last partition takes the rest of the disk."""

from __future__ import annotations

from snf_image.helper import partitions
from snf_image.helper.task import Context, Task


def run(context: Context) -> None:
    disk = context.disk
    table = partitions.read(disk.read_sectors, disk.sectors)
    writes, grown = partitions.grow_last(disk.read_sectors, table, disk.sectors)
    if writes:
        disk.write_sectors(writes)
    context.resized = grown
    context.facts["partition_table"] = table.kind
    context.facts["grown_partition"] = str(grown.number)


TASK = Task(name="FixPartitionTable", run=run, left_to_cloud_init=True)

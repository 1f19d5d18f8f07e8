# SPDX-License-Identifier: BSD-2-Clause
"""FilesystemResizeUnmounted: an ext file system on the last partition is checked, then grows with it."""

from __future__ import annotations

from snf_image.helper import filesystems, programs
from snf_image.helper.errors import TaskError
from snf_image.helper.task import Context, Task

#: Seconds; the host's own deadline is shorter or longer as its administrator wishes.
CHECK_TIMEOUT = 1800.0
RESIZE_TIMEOUT = 1800.0

#: e2fsck: nothing wrong; errors corrected.
CHECK_PASSED = (0, 1)


def applies(context: Context) -> bool:
    return context.resized is not None


def run(context: Context) -> None:
    partition = context.resized
    if partition is None:
        return
    found = filesystems.identify(context.disk.read_start(partition, filesystems.WINDOW))
    if found is None or found.kind != "ext4":
        kind = found.kind if found is not None else "no known file system"
        context.warn(f"partition {partition.number} was made larger, but what it holds was not ({kind})")
        return
    node = context.disk.node_of(partition)
    code, text = programs.run(["/usr/sbin/e2fsck", "-f", "-p", node], timeout=CHECK_TIMEOUT, allowed=(0, 1, 4, 8))
    if code not in CHECK_PASSED:
        last = text.splitlines()[-1:] or ["no reason given"]
        raise TaskError(f"the file system on partition {partition.number} is damaged: {last[0][:300]}")
    programs.run(["/usr/sbin/resize2fs", node], timeout=RESIZE_TIMEOUT)
    context.facts["resized_file_system"] = str(partition.number)


TASK = Task(
    name="FilesystemResizeUnmounted",
    run=run,
    applies=applies,
    after=("FixPartitionTable",),
    resizes=True,
    left_to_cloud_init=True,
)

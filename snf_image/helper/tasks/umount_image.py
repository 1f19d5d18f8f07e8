# SPDX-License-Identifier: BSD-2-Clause
"""UmountImage: everything is written out, and the file systems are closed clean."""

from __future__ import annotations

import os

from snf_image.helper import syscalls
from snf_image.helper.errors import TaskError
from snf_image.helper.task import Context, Task


def run(context: Context) -> None:
    if context.mounted is not None:
        context.mounted.close()
        context.mounted = None
    for place in reversed(context.mount_points):
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise TaskError("a file system of the image turned read-only: it is damaged or its disk fails")
    while context.mount_points:
        syscalls.umount(context.mount_points.pop())
    for disk in context.disks:
        descriptor = os.open(disk.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


TASK = Task(name="UmountImage", run=run, after=("MountImage",), excludable=False, needs_mount=True)

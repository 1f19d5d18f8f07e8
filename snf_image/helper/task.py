# SPDX-License-Identifier: BSD-2-Clause
"""What a task is, and what it is given. Each file of `tasks/` declares one `TASK`; the runner does the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from snf_image.helper.disks import DiskDevice
from snf_image.helper.errors import TaskError
from snf_image.helper.partitions import Partition
from snf_image.helper.properties import Properties
from snf_image.helper.tree import Tree
from snf_image.protocol import Request


@dataclasses.dataclass
class Context:
    """What the tasks share: the request, the disks, and what earlier tasks found."""

    request: Request
    properties: Properties
    disks: tuple[DiskDevice, ...]
    warn: Callable[[str], None]
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    resized: Partition | None = None
    mounted: Tree | None = None
    mount_points: list[str] = dataclasses.field(default_factory=list)

    @property
    def disk(self) -> DiskDevice:
        """The disk that the image was written to."""
        if not self.disks:
            raise TaskError("the request names no disk")
        return self.disks[0]

    @property
    def tree(self) -> Tree:
        if self.mounted is None:
            raise TaskError("the image is not mounted")
        return self.mounted


def always(_context: Context) -> bool:
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """`after` and `before` name other tasks; the order follows from them alone.

    The switches are the original's: whether EXCLUDE_TASK_<name> may skip it, whether it needs the mounted
    image (EXCLUDE_MOUNTED_TASKS), whether it resizes a file system (EXCLUDE_FILESYSTEMRESIZE_TASKS), and whether
    cloud-init does its work inside the guest instead (CLOUD_INIT).
    """

    name: str
    run: Callable[[Context], None]
    applies: Callable[[Context], bool] = always
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    excludable: bool = True
    needs_mount: bool = False
    resizes: bool = False
    left_to_cloud_init: bool = False

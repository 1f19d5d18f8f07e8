# SPDX-License-Identifier: BSD-2-Clause
"""TrimFilesystems: what was removed is not only without a name: the disk forgets it, and a golden image stays small."""

from __future__ import annotations

import errno
import os

from snf_image.helper import syscalls
from snf_image.helper.task import Context, Task

_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)


def run(context: Context) -> None:
    os.sync()  # what was freed since the last commit of the journal is not trimmed
    total = 0
    for place in context.mount_points:
        try:
            total += syscalls.trim(place)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            context.warn(f"a file system cannot be trimmed ({error.strerror}): removed data may still be on its disk")
    context.facts["trimmed_bytes"] = str(total)


TASK = Task(
    name="TrimFilesystems",
    run=run,
    after=(
        "MountImage",
        "ForgetCloudInit",
        "ForgetHistory",
        "ForgetHostKeys",
        "ForgetIdentity",
        "ForgetLogins",
        "ForgetNetwork",
        "ForgetSwap",
    ),
    before=("UmountImage",),
    excludable=False,
    needs_mount=True,
)

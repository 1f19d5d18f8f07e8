# SPDX-License-Identifier: BSD-2-Clause
"""One file per task. This list says which exist; their order follows from what each declares."""

from __future__ import annotations

from snf_image.helper.task import Task
from snf_image.helper.tasks import (
    assign_hostname,
    change_machine_id,
    change_password,
    configure_network,
    delete_ssh_keys,
    enforce_personality,
    filesystem_resize_unmounted,
    fix_partition_table,
    mount_image,
    umount_image,
)

TASKS: tuple[Task, ...] = (
    fix_partition_table.TASK,
    filesystem_resize_unmounted.TASK,
    mount_image.TASK,
    assign_hostname.TASK,
    change_machine_id.TASK,
    change_password.TASK,
    configure_network.TASK,
    delete_ssh_keys.TASK,
    enforce_personality.TASK,
    umount_image.TASK,
)

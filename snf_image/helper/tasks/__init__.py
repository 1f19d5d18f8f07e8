# SPDX-License-Identifier: BSD-2-Clause
"""One file per task. These lists say which exist for which operation; their order follows from what each declares."""

from __future__ import annotations

from collections.abc import Mapping

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
    forget_cloud_init,
    forget_history,
    forget_host_keys,
    forget_identity,
    forget_logins,
    forget_network,
    forget_swap,
    mount_image,
    trim_filesystems,
    umount_image,
)
from snf_image.protocol import CUSTOMIZE, GENERALIZE

#: An image becomes an instance's system.
CUSTOMIZING: tuple[Task, ...] = (
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

#: An instance's system becomes an image again: nothing of the instance is left.
GENERALIZING: tuple[Task, ...] = (
    mount_image.TASK,
    forget_cloud_init.TASK,
    forget_history.TASK,
    forget_host_keys.TASK,
    forget_identity.TASK,
    forget_logins.TASK,
    forget_network.TASK,
    forget_swap.TASK,
    trim_filesystems.TASK,
    umount_image.TASK,
)

OPERATIONS: Mapping[str, tuple[Task, ...]] = {CUSTOMIZE: CUSTOMIZING, GENERALIZE: GENERALIZING}

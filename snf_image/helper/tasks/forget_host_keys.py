# SPDX-License-Identifier: BSD-2-Clause
"""ForgetHostKeys: a golden image has no ssh host keys; each clone gets its own (DeleteSSHKeys)."""

from __future__ import annotations

from snf_image.helper import ssh_config
from snf_image.helper.task import Context, Task
from snf_image.helper.tasks.delete_ssh_keys import FOLDER, old_keys


def run(context: Context) -> None:
    tree = context.tree
    keys = old_keys(tree.names(FOLDER), ssh_config.read(tree))
    context.facts["host_keys_removed"] = str(sum(tree.remove(path) for path in keys))


TASK = Task(name="ForgetHostKeys", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

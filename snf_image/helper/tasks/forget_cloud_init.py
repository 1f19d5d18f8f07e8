# SPDX-License-Identifier: BSD-2-Clause
"""ForgetCloudInit: cloud-init takes a clone for a new instance. Its seed goes too: it may hold secrets."""

from __future__ import annotations

from snf_image.helper.task import Context, Task

FOLDER = "var/lib/cloud"


def run(context: Context) -> None:
    context.facts["cloud_init_files_removed"] = str(context.tree.empty(FOLDER))


TASK = Task(name="ForgetCloudInit", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

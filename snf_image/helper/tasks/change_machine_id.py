# SPDX-License-Identifier: BSD-2-Clause
"""ChangeMachineId: no two instances of an image share an identity."""

from __future__ import annotations

import os

from snf_image.helper.task import Context, Task

PATHS = ("etc/machine-id", "var/lib/dbus/machine-id")


def run(context: Context) -> None:
    """A missing file stays missing: the system makes one at its first boot. A link is replaced by the same id."""
    identity = os.urandom(16).hex() + "\n"
    for path in PATHS:
        if context.tree.exists(path):
            context.tree.write_text(path, identity, mode=0o444)


TASK = Task(name="ChangeMachineId", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

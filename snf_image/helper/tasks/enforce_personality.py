# SPDX-License-Identifier: BSD-2-Clause
"""EnforcePersonality: files that the user wants injected."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64

from snf_image.helper import accounts
from snf_image.helper.errors import TaskError
from snf_image.helper.task import Context, Task
from snf_image.protocol import PersonalityFile


def decoded(file: PersonalityFile) -> bytes:
    try:
        return a2b_base64("".join(file.contents.split()).encode("ascii"), strict_mode=True)
    except (Base64Error, UnicodeEncodeError):
        raise TaskError(f"the contents of the personality file {file.path[:80]!r} are not base64") from None


def run(context: Context) -> None:
    """Missing folders are made with mode 0750 and the file's owner (as in snf-image 0.23.1)."""
    tree = context.tree
    users = accounts.parse(tree.read_text("etc/passwd") or "")
    groups = accounts.groups(tree.read_text("etc/group") or "")
    for file in context.request.personality:
        if not file.path.startswith("/"):
            raise TaskError(f"the personality file {file.path[:80]!r} has no absolute path")
        if file.owner not in users:
            raise TaskError(f"the image has no user {file.owner!r} to own {file.path[:80]!r}")
        if file.group not in groups:
            raise TaskError(f"the image has no group {file.group!r} to own {file.path[:80]!r}")
        uid, gid = users[file.owner].uid, groups[file.group]
        tree.make_directories(file.path.rpartition("/")[0], 0o750, uid, gid)
        tree.write(file.path, decoded(file), mode=file.mode, uid=uid, gid=gid)


TASK = Task(
    name="EnforcePersonality",
    run=run,
    applies=lambda context: bool(context.request.personality),
    after=("MountImage", "AssignHostname", "ChangeMachineId", "ChangePassword", "ConfigureNetwork", "DeleteSSHKeys"),
    before=("UmountImage",),
    needs_mount=True,
)

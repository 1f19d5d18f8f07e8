# SPDX-License-Identifier: BSD-2-Clause
"""ForgetLogins: who could enter the machine may not enter its clones: keys, passwords, and keys to other machines.

Accounts stay, locked; ChangePassword opens a clone's. Files are edited line by line, as an image may have them.
"""

from __future__ import annotations

from snf_image.helper import accounts, ssh_config
from snf_image.helper.accounts import Account
from snf_image.helper.task import Context, Task
from snf_image.helper.tree import Tree

#: What keeps an account locked, whatever follows.
LOCKS = ("!", "*")

#: Copies that the system's own programs make, with the old passwords in them.
COPIES = ("etc/shadow-", "etc/passwd-", "etc/gshadow-", "etc/group-")

_SSH_FILES = ("authorized_keys", "authorized_keys2", "known_hosts", "known_hosts.old")


def locked(text: str, *, in_passwd: bool) -> tuple[str, int]:
    """The file with every password locked, and how many were not; a reference to shadow (x) is none."""
    lines, count = text.split("\n"), 0
    for number, line in enumerate(lines):
        fields = line.split(":")
        if len(fields) < 2 or not fields[0] or fields[1].startswith(LOCKS) or (in_passwd and fields[1] == "x"):
            continue
        lines[number] = ":".join([fields[0], "!", *fields[2:]])
        count += 1
    return "\n".join(lines), count


def lock_passwords(tree: Tree) -> int:
    total = 0
    for path in ("etc/shadow", "etc/passwd"):
        text = tree.read_text(path)
        if text is None:
            continue
        changed, count = locked(text, in_passwd=path == "etc/passwd")
        if count:
            tree.write_text(path, changed)
        total += count
    return total


def keys_of(tree: Tree, settings: ssh_config.Settings, account: Account) -> list[str]:
    """The files that let somebody in as this account, or let this account in elsewhere."""
    folder = f"{account.home.strip('/')}/.ssh".lstrip("/")
    found = [f"{folder}/{name}" for name in tree.names(folder) if name in _SSH_FILES or name.startswith("id_")]
    first = ssh_config.authorized_keys_path(settings, account)
    return sorted({*found, *([first] if first is not None else [])})


def run(context: Context) -> None:
    tree = context.tree
    settings = ssh_config.read(tree)
    people = [each for each in accounts.parse(tree.read_text("etc/passwd") or "").values() if ".." not in each.home]
    paths = {path for account in people for path in keys_of(tree, settings, account)}
    context.facts["key_files_removed"] = str(sum(tree.remove(path) for path in sorted(paths)))
    context.facts["passwords_locked"] = str(lock_passwords(tree))
    for path in COPIES:
        tree.remove(path)


TASK = Task(name="ForgetLogins", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

# SPDX-License-Identifier: BSD-2-Clause
"""ForgetHistory: what the machine wrote down of its life: logs, shell histories, mail, crashes, temporary files."""

from __future__ import annotations

import re
import stat

from snf_image.helper import accounts
from snf_image.helper.task import Context, Task
from snf_image.helper.tree import Tree

LOGS = "var/log"

#: Rotated logs go; of the others the files stay, for some programs write only where there is one.
_ROTATED = re.compile(r"\.(gz|xz|bz2|zst|old|journal~?|[0-9]+|[0-9]{8}(-[0-9]+)?)$")

EMPTIED = ("tmp", "var/tmp", "var/crash", "var/lib/systemd/coredump", "var/mail", "var/spool/mail")

_HISTORIES = re.compile(r"\.([a-z_]*history|lesshst|viminfo|wget-hsts|rediscli_history)$")


def clear_logs(tree: Tree) -> int:
    count = 0
    for path, mode in tree.walk(LOGS):
        if stat.S_ISREG(mode):
            count += tree.remove(path) if _ROTATED.search(path) else tree.truncate(path)
    return count


def histories(tree: Tree) -> list[str]:
    passwd = accounts.parse(tree.read_text("etc/passwd") or "")
    homes = {account.home.strip("/") for account in passwd.values() if ".." not in account.home} - {""}
    return [f"{home}/{name}" for home in sorted(homes) for name in tree.names(home) if _HISTORIES.match(name)]


def run(context: Context) -> None:
    tree = context.tree
    context.facts["logs_cleared"] = str(clear_logs(tree))
    context.facts["histories_removed"] = str(sum(tree.remove(path) for path in histories(tree)))
    context.facts["leftovers_removed"] = str(sum(tree.empty(path) for path in EMPTIED))


TASK = Task(name="ForgetHistory", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

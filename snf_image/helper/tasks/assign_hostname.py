# SPDX-License-Identifier: BSD-2-Clause
"""AssignHostname: the instance's name becomes the system's."""

from __future__ import annotations

from snf_image.helper.errors import TaskError
from snf_image.helper.task import Context, Task

OWN_ADDRESS = "127.0.1.1"
LABEL_LIMIT = 63


def checked(name: str) -> str:
    """The name when it is one (RFC 1123): letters, digits, hyphens and dots."""
    labels = name.split(".")
    for label in labels:
        plain = label.replace("-", "a")
        if not 0 < len(label) <= LABEL_LIMIT or not plain.isascii() or not plain.isalnum() or label.startswith("-"):
            raise TaskError(f"{name[:80]!r} is not a host name")
    return name


def hosts_with(text: str, name: str) -> str:
    """The hosts file with the line of the system's own address naming `name`; a second such line goes."""
    short = name.split(".", maxsplit=1)[0]
    names = name if short == name else f"{name} {short}"
    line = f"{OWN_ADDRESS}\t{names}"
    result: list[str] = []
    is_placed = False
    for old in text.split("\n"):
        if old.split()[:1] != [OWN_ADDRESS]:
            result.append(old)
        elif not is_placed:
            result.append(line)
            is_placed = True
    if not is_placed:
        place = next((number + 1 for number, old in enumerate(result) if old.split()[:1] == ["127.0.0.1"]), 0)
        result.insert(place, line)
    joined = "\n".join(result)
    return joined if joined.endswith("\n") else joined + "\n"


def run(context: Context) -> None:
    name = checked(context.request.hostname)
    tree = context.tree
    tree.write_text("etc/hostname", name + "\n")
    hosts = tree.read_text("etc/hosts")
    if hosts is not None:
        tree.write_text("etc/hosts", hosts_with(hosts, name))


TASK = Task(name="AssignHostname", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

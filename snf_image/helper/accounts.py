# SPDX-License-Identifier: BSD-2-Clause
"""Edits of passwd, shadow and group files as text. Pure, and tolerant of what an image may hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Account:
    name: str
    uid: int
    gid: int
    home: str


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def parse(passwd: str) -> dict[str, Account]:
    """The accounts by name; of two lines with one name the first counts, as for the C library. Broken lines do not."""
    found: dict[str, Account] = {}
    for line in passwd.split("\n"):
        fields = line.rstrip("\r").split(":")
        if len(fields) < 6 or not fields[0] or fields[0] in found:
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None:
            found[fields[0]] = Account(fields[0], uid, gid, fields[5] or "/")
    return found


def groups(group: str) -> dict[str, int]:
    """Group numbers by name."""
    found: dict[str, int] = {}
    for line in group.split("\n"):
        fields = line.rstrip("\r").split(":")
        number = _number(fields[2]) if len(fields) >= 3 else None
        if number is not None and fields[0]:
            found.setdefault(fields[0], number)
    return found


def with_password(shadow: str, name: str, field: str, today: int) -> str:
    """The shadow file with this password field for the user, changed `today` (days since 1970), never expiring.

    Every line of that name is set: with two, one would otherwise keep the author's password. A missing one is added.
    """
    line = f"{name}:{field}:{today}:0:99999:7:::"
    lines = shadow.split("\n")
    found = [number for number, old in enumerate(lines) if old.split(":")[0] == name]
    for number in found:
        lines[number] = line
    text = "\n".join(lines)
    if not text.endswith("\n") and text:
        text += "\n"
    return text if found else f"{text}{line}\n"


def with_shadowed(passwd: str, names: Sequence[str]) -> str:
    """The passwd file with "x" as the password of these users: a hash or nothing there would win over shadow."""
    lines = passwd.split("\n")
    for number, line in enumerate(lines):
        fields = line.split(":")
        if fields[0] in names and len(fields) >= 7 and fields[1] != "x":
            lines[number] = ":".join([fields[0], "x", *fields[2:]])
    return "\n".join(lines)

# SPDX-License-Identifier: BSD-2-Clause
"""How a server of a volume stands to it, and where it leaves that for a successor: in a file under /run.

ATTACHED    nobody said anything yet: reads ask the store each time, the first write takes the lock
EXCLUSIVE   the lock is held (or was, and is taken again by a server that restarts)
SHARED      both sides of a live migration: whoever does I/O gets the lock, the other flushes and yields
CLOSED      reads only
SNAPSHOT    immutable: a shared lock keeps it from being removed
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from ganeti_plugin.files import write_atomically

#: In a volume's directory under /run.
_MODE_FILE = "mode"


class Mode(StrEnum):
    ATTACHED = "attached"
    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    CLOSED = "closed"
    SNAPSHOT = "snapshot"


def was_served(directory: Path) -> bool:
    """Whether a server has left its mode in this directory of a volume under /run."""
    return (directory / _MODE_FILE).exists()


def left_mode(directory: Path) -> Mode:
    """The mode in which the last server was."""
    try:
        return Mode((directory / _MODE_FILE).read_text().strip())
    except (FileNotFoundError, ValueError):
        return Mode.ATTACHED


def leave_mode(directory: Path, mode: Mode) -> None:
    """Have the next server begin in this mode."""
    write_atomically(directory / _MODE_FILE, mode.value.encode(), durable=False)

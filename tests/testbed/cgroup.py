# SPDX-License-Identifier: BSD-2-Clause
"""Everything that the testbed starts lives in one cgroup, so that nothing of it can be forgotten, not even after the
tool itself was killed: cgroup.kill ends exactly what was started, and nothing else (cgroups(7), Linux 5.14).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ganeti_plugin.errors import StateError
from tests.testbed.layout import NAME

#: Seconds until killed processes must be gone.
PATIENCE = 20.0


class NoCgroupError(StateError):
    template = "no cgroup2 file system is mounted on this machine"
    hint = "mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup"


def mount_point() -> Path:
    """Where the machine has its cgroup2 hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise NoCgroupError


def group() -> Path:
    return mount_point() / NAME


def join(leaf: str) -> None:
    """Move the calling process into the testbed's cgroup."""
    directory = group() / leaf
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").write_text(str(os.getpid()))


def kill(leaf: str = "") -> None:
    """End everything in the testbed's cgroup, or in one leaf, and remove it; nothing to do when it is not there."""
    top = group() / leaf
    if not top.is_dir():
        return
    (top / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + PATIENCE
    while "populated 1" in (top / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise StateError(message=f"processes in {top} do not end", hint=f"see {top}/**/cgroup.procs")
        time.sleep(0.05)
    for directory, _, _ in os.walk(top, topdown=False):
        os.rmdir(directory)


def freeze(leaf: str, frozen: bool) -> None:
    """Stop all processes of a leaf, or let them go on; returns when it is so."""
    top = group() / leaf
    (top / "cgroup.freeze").write_text(str(int(frozen)))
    deadline = time.monotonic() + PATIENCE
    while f"frozen {int(frozen)}" not in (top / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise StateError(message=f"the processes in {top} do not stop or go on")
        time.sleep(0.02)


def populated() -> bool:
    top = group()
    return top.is_dir() and "populated 1" in (top / "cgroup.events").read_text()

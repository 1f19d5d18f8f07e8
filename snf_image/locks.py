# SPDX-License-Identifier: BSD-2-Clause
"""Who may run now: one run for one disk (threat V08), and a bounded number of helper VMs for one node (V13).

Both are flock(2) on files under /run, so they end with their process, however it ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ganeti_plugin.errors import StateError
from ganeti_plugin.files import LockedError, locked, remove
from snf_image.targets import Target

DIRECTORY = Path("/run/snf-image")

#: Where Ganeti keeps the process ids of running KVM instances (lib/hypervisor/hv_kvm).
KVM_PIDS = Path("/run/ganeti/kvm-hypervisor/pid")


class BusyDiskError(StateError):
    template = "disk {index} is in use by another run of snf-image"
    hint = "wait for it to end, then try again"


class RunningInstanceError(StateError):
    template = "instance {name} is running on this node, and its disks may not be touched"
    hint = "stop it first: gnt-instance shutdown {name}"


class QueueError(StateError):
    template = "{count} helper VMs are running and none ended within {seconds:g} seconds"
    hint = "try again later, or raise helper_parallel in [image]"


def directory() -> Path:
    DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    return DIRECTORY


@contextmanager
def disks(targets: Sequence[Target]) -> Iterator[None]:
    """Hold the disks of one run, or refuse at once."""
    _sweep()
    with ExitStack() as stack:
        for target in sorted(targets, key=lambda each: each.identity):
            try:
                stack.enter_context(_vanishing(directory() / f"disk-{target.identity}.lock"))
            except LockedError:
                raise BusyDiskError(index=target.place.index) from None
        yield


def _sweep() -> None:
    """Remove the lock files of runs that were killed (threat V07): taking such a lock and letting it go does so."""
    for path in directory().glob("disk-*.lock"):
        with suppress(LockedError), _vanishing(path):
            pass


@contextmanager
def _vanishing(path: Path) -> Iterator[None]:
    """A lock whose file goes with it: disks come and go, and their locks' names must not pile up under /run."""
    while True:
        with locked(path, timeout=0) as descriptor:
            if not _is_still(path, descriptor):
                continue  # the holder before us removed it between our open and our lock
            try:
                yield
            finally:
                remove(path)
            return


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


@contextmanager
def turn(count: int, seconds: float) -> Iterator[None]:
    """Wait for one of `count` places for a helper VM, at most `seconds`."""
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        while not _take(stack, count):
            if time.monotonic() >= deadline:
                raise QueueError(count=count, seconds=seconds)
            time.sleep(0.1)
        yield


def _take(stack: ExitStack, count: int) -> bool:
    for number in range(count):
        try:
            stack.enter_context(locked(directory() / f"place-{number}.lock", timeout=0))
        except LockedError:
            continue
        return True
    return False


def refuse_running(name: str, pids: Path | None = None, proc: Path = Path("/proc")) -> None:
    """Raise RunningInstanceError when Ganeti's KVM instance of that name lives on this node.

    A process id alone proves nothing, for ids are used again: its command must name the instance, as Ganeti asks too.
    """
    try:
        pid = int(((pids or KVM_PIDS) / name).read_text(encoding="ascii"))
        command = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if name.encode() in (word.split(b",")[0] for word in command):
        raise RunningInstanceError(name=name)

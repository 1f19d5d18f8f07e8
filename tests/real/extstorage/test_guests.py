# SPDX-License-Identifier: BSD-2-Clause
"""A running guest sees its disk grow: a real QEMU, started as Ganeti 3.0 does, and the hook as Ganeti calls it."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from extstorage import guests
from tests.real.extstorage.provider import RUN, TREE, do, eventually
from tests.unit.ganeti_plugin.contract.test_hook import STOP

pytestmark = pytest.mark.timeout(120)

HOOK = Path("/usr/share/snf-ganeti/ganeti-hook")
INSTANCE = "grown.example.org"
UUID = str(uuid.UUID(int=7))
DRIVE = guests.qemu_id(UUID)
MONITOR = guests.KVM / "ctrl" / f"{INSTANCE}.qmp"


@pytest.fixture
def guest(volume: str) -> Iterator[None]:
    """A QEMU with the drive that attach's answer makes; its processor stands still, which its block layer does not."""
    for folder in ("ctrl", "pid"):
        (guests.KVM / folder).mkdir(parents=True, exist_ok=True)
    pid = guests.KVM / "pid" / INSTANCE
    address = do("attach", volume).removeprefix("\nkvm:")
    options = f"file={address},format=raw,if=none,cache=none,id={DRIVE},auto-read-only=off"
    subprocess.run(
        [
            *("qemu-system-x86_64", "-S", "-m", "64", "-nodefaults", "-display", "none", "-daemonize"),
            *("-pidfile", pid, "-qmp", f"unix:{MONITOR},server=on,wait=off"),
            *("-drive", options, "-device", f"virtio-blk-pci,id={DRIVE},drive={DRIVE}"),
        ],
        check=True,
        timeout=60,
    )
    yield
    with monitor() as opened:
        opened.call("quit")
    eventually(lambda: not pid.exists())
    MONITOR.unlink(missing_ok=True)


def monitor() -> contextlib.closing[guests.Monitor]:
    """For as short as possible: QEMU serves one at a time, and the hook must get its turn."""
    return contextlib.closing(guests.Monitor(INSTANCE, MONITOR))


def size() -> object:
    with monitor() as opened:
        found = opened.call("query-block")
    assert isinstance(found, list)
    return next(drive["inserted"]["image"]["virtual-size"] for drive in found if drive["device"] == DRIVE)


def write(command: str) -> None:
    with monitor() as opened:
        opened.call("human-monitor-command", **{"command-line": f'qemu-io {DRIVE} "{command}"'})


def react(volume: str) -> None:
    disk = {"UUID": UUID, "PROVIDER": "archipelago", "ID": volume}
    disks = {f"GANETI_INSTANCE_DISK0_{name}": value for name, value in disk.items()}
    call = {"GANETI_HOOKS_PATH": "disk-grow", "GANETI_INSTANCE_NAME": INSTANCE, "GANETI_INSTANCE_DISK_COUNT": "1"}
    command = HOOK if HOOK.exists() else TREE / "ganeti-hook"
    done = subprocess.run([command], env={**STOP, **call, **disks}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("guest")
def test_a_running_guest_sees_its_disk_grow(volume: str) -> None:
    write("write -P 5 0 1M")
    for now in (96, 128):
        do("grow", volume, VOL_SIZE="64", VOL_NEW_SIZE=str(now))
        for _ in range(2):
            react(volume)
        assert size() == now << 20
        write(f"write -P 6 {now - 1}M 1M")
    read = ["nbdcopy", f"nbd+unix:///?socket={RUN / volume / 'nbd.sock'}", "-"]
    content = subprocess.run(read, capture_output=True, check=True, timeout=60).stdout
    assert len(content) == 128 << 20
    assert content[: 1 << 20] == bytes([5]) * (1 << 20)
    for end in (96, 128):
        assert content[(end - 1) << 20 : end << 20] == bytes([6]) * (1 << 20)

# SPDX-License-Identifier: BSD-2-Clause
"""The block device of an attached volume: nbdfuse shows the volume as a file, loop shows the file as a device.

With systemd as PID 1 it is an instance of a template unit, like the server; elsewhere nbdfuse runs as a plain daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess

from extstorage import answer
from extstorage.servers import START_TIMEOUT, STOP_TIMEOUT, Site, wait_for
from ganeti_plugin.errors import CommandError, StateError
from ganeti_plugin.log import warning
from ganeti_plugin.run import run, spawn

_LOOP_MAJOR = 7
_LOOP_CTL_ADD = 0x4C80
_MOST_LOOPS = 1024


class NoDeviceError(StateError):
    template = "no block device could be made for the volume {name!r}: {reason}"


def unit_of(name: str) -> str:
    return f"snf-archipelago-device@{name}.service"


def start_device(site: Site, name: str) -> str:
    """Have a block device for the volume; answers with its path."""
    directory = site.device_directory(name)
    device = answer.device_of(str(directory))
    if device:
        return device
    if site.uses_units:
        run(["systemctl", "restart", unit_of(name)], timeout=START_TIMEOUT)
    else:
        stop_device(site, name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / "disk").touch()
        # Not our stderr: who reads it would wait for the end of nbdfuse.
        command = ["nbdfuse", str(directory / "disk"), "--unix", str(site.socket(name))]
        spawn(command, new_session=True, stderr=subprocess.DEVNULL)
        set_up(site, name)
    device = answer.device_of(str(directory))
    if not device:
        raise NoDeviceError(name=name, reason="the loop device vanished")
    return device


def set_up(site: Site, name: str) -> None:
    """Wait for nbdfuse's file and put a loop device on it. Also what the device's unit runs."""
    directory = site.device_directory(name)
    disk = directory / "disk"
    if not wait_for(lambda: os.path.ismount(disk), START_TIMEOUT):
        raise NoDeviceError(name=name, reason="nbdfuse does not answer")
    for number in _loop_numbers():
        if os.path.exists(f"/sys/block/loop{number}/loop/backing_file") or not _loop_node(number):
            continue
        try:
            run(["losetup", f"/dev/loop{number}", disk])
        except CommandError:
            continue  # somebody else was faster
        (directory / "loop").write_text(f"{number}\n", encoding="ascii")
        return
    raise NoDeviceError(name=name, reason="all loop devices are in use")


def _loop_numbers() -> list[int]:
    """The loop devices that /dev shows (a container may have a few only), then others that the kernel may make."""
    shown = sorted(int(name[4:]) for name in os.listdir("/dev") if name.startswith("loop") and name[4:].isdigit())
    return [number for number in (*shown, *(n for n in range(1, _MOST_LOOPS) if n not in shown)) if number]


def _loop_node(number: int) -> bool:
    """Whether /dev/loopN is there, after asking the kernel to make it. Never 0: Ganeti takes minor 0 for none."""
    path = f"/dev/loop{number}"
    if os.path.exists(path):
        return True
    with contextlib.suppress(OSError), open("/dev/loop-control", "rb") as loops:
        fcntl.ioctl(loops, _LOOP_CTL_ADD, number)
    with contextlib.suppress(OSError):
        if os.path.exists(f"/sys/block/loop{number}") and not wait_for(lambda: os.path.exists(path), 0.1):
            os.mknod(path, 0o60660, os.makedev(_LOOP_MAJOR, number))
    return os.path.exists(path)


def stop_device(site: Site, name: str) -> None:
    """Take the block device away; nothing happens if there is none."""
    if not site.device_directory(name).is_dir():
        return
    if site.uses_units:
        run(["systemctl", "stop", unit_of(name)], timeout=STOP_TIMEOUT)
        run(["systemctl", "reset-failed", unit_of(name)], allowed=(0, 1))
    else:
        take_down(site, name)
    shutil.rmtree(site.device_directory(name), ignore_errors=True)


def take_down(site: Site, name: str) -> None:
    """Detach the loop device, wait until it is gone, and unmount nbdfuse's file. Also what the device's unit runs."""
    directory = site.device_directory(name)
    # Not only the recorded one: an attach may have been killed before it wrote the record.
    for device in (f"/dev/loop{n}" for n in _loop_numbers() if answer.is_loop_of(str(directory), n)):
        run(["blockdev", "--flushbufs", device], allowed=(0, 1), timeout=STOP_TIMEOUT)
        run(["losetup", "--detach", device], timeout=STOP_TIMEOUT)
        if not wait_for(lambda at=int(device[9:]): not answer.is_loop_of(str(directory), at), START_TIMEOUT):  # type: ignore[misc]
            raise NoDeviceError(name=name, reason=f"{device} is still in use and can't be detached")
    (directory / "loop").unlink(missing_ok=True)
    if os.path.ismount(directory / "disk"):
        run(["umount", directory / "disk"], timeout=STOP_TIMEOUT)
    if os.path.ismount(directory / "disk"):
        warning("%s is still mounted", directory / "disk")

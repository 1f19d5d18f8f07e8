# SPDX-License-Identifier: BSD-2-Clause
"""Starting and stopping the server of a volume and its block device.

With systemd as PID 1 both are instances of template units: limits, sandbox, restart and logs are systemd's work.
Elsewhere the same programs run as plain daemons: without sandbox, and restarted only by the next attach.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from extstorage import answer, control
from extstorage.errors import ServerError
from extstorage.identity import acting_as, ids_of
from extstorage.stores import STORE_FILE
from ganeti_plugin.errors import CommandError, Error, StateError
from ganeti_plugin.files import read_bounded, write_atomically
from ganeti_plugin.log import warning
from ganeti_plugin.run import run, spawn

PLUGIN = Path(__file__).resolve().parent / "nbdkit_plugin.py"

#: Seconds. A stop flushes what the guest wrote, which may be much.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 600.0
_POLL = 0.02

_SYSTEMD = Path("/run/systemd/system")
_LOOP_MAJOR = 7
_LOOP_CTL_ADD = 0x4C80
_MOST_LOOPS = 1024


class Site(NamedTuple):
    """Where things are on this node."""

    #: The configuration's table: name of each store and where it is (see stores.py).
    stores: Mapping[str, str]
    default_store: str
    user: str
    run: Path = Path(answer.RUN)
    devices: Path = Path(answer.DEVICES)

    def directory(self, name: str) -> Path:
        return self.run / name

    def device_directory(self, name: str) -> Path:
        return self.devices / name

    def socket(self, name: str) -> Path:
        return self.run / name / "nbd.sock"

    @property
    def uses_units(self) -> bool:
        """Units know only the usual paths, and need systemd as PID 1."""
        usual = self.run == Path(answer.RUN) and self.devices == Path(answer.DEVICES)
        return usual and _SYSTEMD.is_dir() and os.geteuid() == 0


class NoDeviceError(StateError):
    template = "no block device could be made for the volume {name!r}: {reason}"


def unit_of(name: str) -> str:
    return f"snf-archipelago@{name}.service"


def device_unit_of(name: str) -> str:
    return f"snf-archipelago-device@{name}.service"


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


# The server.


def is_running(site: Site, name: str) -> bool:
    return answer.is_serving(str(site.directory(name)))


def start(site: Site, name: str, store: str) -> None:
    """Have the volume, which is in that store, served; nothing happens if it is."""
    if is_running(site, name):
        return
    prepare_directory(site, name, store)
    if site.uses_units:
        run(["systemctl", "start", unit_of(name)], timeout=START_TIMEOUT)
    else:
        _start_plain(site, name)
    if not _wait(lambda: is_running(site, name), START_TIMEOUT):
        raise ServerError(name=name, message="nothing, although it was started")


def _start_plain(site: Site, name: str) -> None:
    directory = site.directory(name)
    for leftover in ("nbd.sock", "nbdkit.pid"):
        (directory / leftover).unlink(missing_ok=True)
    user: list[str | Path] = ["--user", site.user] if os.geteuid() == 0 else []
    run(
        [
            *("nbdkit", "--unix", site.socket(name), "--pidfile", directory / "nbdkit.pid", *user),
            *("python", PLUGIN, f"volume={name}", f"run={directory}"),
        ],
        timeout=START_TIMEOUT,
    )


def prepare_directory(site: Site, name: str, store: str) -> Path:
    """The volume's directory under /run, which belongs to the store's user, with the name of the store in it."""
    site.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory = site.directory(name)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o750)
        os.chown(directory, *ids_of(site.user))
    with acting_as(site.user):  # never as root: the directory is another user's
        write_atomically(directory / STORE_FILE, f"{store}\n".encode(), durable=False)
    return directory


def recorded_store(site: Site, name: str) -> str:
    """The name of the store that an attached volume is in; "" when it is not attached."""
    try:
        with acting_as(site.user):
            return read_bounded(site.directory(name) / STORE_FILE, 256).decode("ascii").strip()
    except (OSError, ValueError, Error):
        return ""


def stop(site: Site, name: str) -> None:
    """End the server; it flushes first. Nothing happens if there is none."""
    if site.uses_units:
        run(["systemctl", "stop", unit_of(name)], timeout=STOP_TIMEOUT)
        run(["systemctl", "reset-failed", unit_of(name)], allowed=(0, 1))
        return
    if not is_running(site, name):
        return
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(int((site.directory(name) / "nbdkit.pid").read_text()))
        try:
            with contextlib.suppress(ServerError):  # it may be ending already
                control.call(site.directory(name), name, "stop")
            # Readable when the process has ended, also while nobody has collected its exit status.
            ended, _, _ = select.select([process], [], [], STOP_TIMEOUT)
        finally:
            os.close(process)
        if not ended:
            raise ServerError(name=name, message=f"nothing; it did not end within {STOP_TIMEOUT:g} s")


def remove_directory(site: Site, name: str) -> None:
    """Remove what a stopped server left under /run."""
    shutil.rmtree(site.directory(name), ignore_errors=True)


# The block device: nbdfuse shows the volume as a file, loop shows the file as a device.


def start_device(site: Site, name: str) -> str:
    """Have a block device for the volume; answers with its path."""
    directory = site.device_directory(name)
    device = answer.device_of(str(directory))
    if device:
        return device
    if site.uses_units:
        run(["systemctl", "restart", device_unit_of(name)], timeout=START_TIMEOUT)
    else:
        stop_device(site, name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / "disk").touch()
        # Not our stderr: who reads it would wait for the end of nbdfuse.
        command = ["nbdfuse", str(directory / "disk"), "--unix", str(site.socket(name))]
        spawn(command, new_session=True, stderr=subprocess.DEVNULL)
        set_up_loop(site, name)
    device = answer.device_of(str(directory))
    if not device:
        raise NoDeviceError(name=name, reason="the loop device vanished")
    return device


def set_up_loop(site: Site, name: str) -> None:
    """Wait for nbdfuse's file and put a loop device on it. Also what the device's unit runs."""
    directory = site.device_directory(name)
    disk = directory / "disk"
    if not _wait(lambda: os.path.ismount(disk), START_TIMEOUT):
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
        if os.path.exists(f"/sys/block/loop{number}") and not _wait(lambda: os.path.exists(path), 0.1):
            os.mknod(path, 0o60660, os.makedev(_LOOP_MAJOR, number))
    return os.path.exists(path)


def stop_device(site: Site, name: str) -> None:
    """Take the block device away; nothing happens if there is none."""
    if not site.device_directory(name).is_dir():
        return
    if site.uses_units:
        run(["systemctl", "stop", device_unit_of(name)], timeout=STOP_TIMEOUT)
        run(["systemctl", "reset-failed", device_unit_of(name)], allowed=(0, 1))
    else:
        take_down_loop(site, name)
    shutil.rmtree(site.device_directory(name), ignore_errors=True)


def take_down_loop(site: Site, name: str) -> None:
    """Detach the loop device, wait until it is gone, and unmount nbdfuse's file. Also what the device's unit runs."""
    directory = site.device_directory(name)
    # Not only the recorded one: an attach may have been killed before it wrote the record.
    for device in (f"/dev/loop{n}" for n in _loop_numbers() if answer.is_loop_of(str(directory), n)):
        run(["blockdev", "--flushbufs", device], allowed=(0, 1), timeout=STOP_TIMEOUT)
        run(["losetup", "--detach", device], timeout=STOP_TIMEOUT)
        if not _wait(lambda at=int(device[9:]): not answer.is_loop_of(str(directory), at), START_TIMEOUT):  # type: ignore[misc]
            raise NoDeviceError(name=name, reason=f"{device} is still in use and can't be detached")
    (directory / "loop").unlink(missing_ok=True)
    if os.path.ismount(directory / "disk"):
        run(["umount", directory / "disk"], timeout=STOP_TIMEOUT)
    if os.path.ismount(directory / "disk"):
        warning("%s is still mounted", directory / "disk")

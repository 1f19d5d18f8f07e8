# SPDX-License-Identifier: BSD-2-Clause
"""A volume as a loop device, for kernels without NBD: nbdfuse shows it as a file, loop the file as a device.

nbdfuse(1) does not connect again when the server dies; so between the two stands qemu-nbd, which does, while requests
wait. (qemu-storage-daemon would do both, but QEMU's FUSE exports mix up writes that come at once: a request's buffer is
read into again while it is being written, in 7.2 for one.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from extstorage import answer, control
from extstorage.errors import NoDeviceError
from extstorage.names import GROWABLE_EXPORT
from extstorage.servers import DEVICE_STOP_TIMEOUT, IN_USE_TIMEOUT, START_TIMEOUT, Site, wait_for
from ganeti_plugin.errors import CommandError
from ganeti_plugin.log import warning
from ganeti_plugin.run import DEVNULL, run, spawn

#: Seconds that requests wait for a new connection before they fail; the device's unit says the same.
PATIENCE = 300

#: Of loop devices (Linux, admin-guide/devices.txt), and the numbers that are tried.
_MAJOR = 7
_MOST = 1024

# linux/loop.h
_CTL_ADD = 0x4C80
_SET_STATUS64, _GET_STATUS64 = 0x4C04, 0x4C05
_STATUS_SIZE, _SIZE_LIMIT_AT = 232, 32

#: The device's unit reads it.
OPTIONS = "options"


def prepare(site: Site, name: str) -> None:
    """The directory of the device, with the file that will be the disk, and what qemu-nbd must know: may it write?"""
    directory = site.device_directory(name)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "disk").touch()
    words = "--read-only" if _status(site, name)["mode"] in ("snapshot", "broken") else ""
    (directory / OPTIONS).write_text(f"OPTIONS={words}\n", encoding="ascii")


def _status(site: Site, name: str) -> control.Request:
    return control.call(site.directory(name), name, "status")


def start_daemon(site: Site, name: str) -> None:
    """What the device's unit does where there is systemd."""
    directory = site.device_directory(name)
    options = (directory / OPTIONS).read_text(encoding="ascii").strip().removeprefix("OPTIONS=").split()
    node = f"driver=nbd,server.type=unix,server.path={site.socket(name)},export={GROWABLE_EXPORT}"
    command = ["nbdfuse", str(directory / "disk"), "--socket-activation", "qemu-nbd", "--shared=8", *options]
    command += ["--image-opts", f"{node},reconnect-delay={PATIENCE}"]
    # Not our stderr: who reads it would wait for the end of nbdfuse.
    spawn(command, new_session=True, stderr=DEVNULL)


def set_up(site: Site, name: str) -> None:
    """Wait for nbdfuse's file and put a loop device on it. Also what the device's unit runs."""
    directory = site.device_directory(name)
    disk = directory / "disk"
    if not wait_for(lambda: os.path.ismount(disk), START_TIMEOUT):
        raise NoDeviceError(name=name, reason="nbdfuse does not answer")
    options = ["--direct-io=on", f"--sizelimit={_status(site, name)['size']}"]
    for number in _numbers():
        if os.path.exists(f"/sys/block/loop{number}/loop/backing_file") or not _node(number):
            continue
        try:
            run(["losetup", *options, f"/dev/loop{number}", disk])
        except CommandError:
            continue  # somebody else was faster
        (directory / "loop").write_text(f"{number}\n", encoding="ascii")
        return
    raise NoDeviceError(name=name, reason="all loop devices are in use")


def _numbers() -> list[int]:
    """The loop devices that /dev shows (a container may have a few only), then others that the kernel may make."""
    shown = sorted(int(name[4:]) for name in os.listdir("/dev") if name.startswith("loop") and name[4:].isdigit())
    return [number for number in (*shown, *(n for n in range(1, _MOST) if n not in shown)) if number]


def _node(number: int) -> bool:
    """Whether /dev/loopN is there, after asking the kernel to make it. Never 0: Ganeti takes minor 0 for none."""
    path = f"/dev/loop{number}"
    if os.path.exists(path):
        return True
    with contextlib.suppress(OSError), open("/dev/loop-control", "rb") as loops:
        fcntl.ioctl(loops, _CTL_ADD, number)
    with contextlib.suppress(OSError):
        if os.path.exists(f"/sys/block/loop{number}") and not wait_for(lambda: os.path.exists(path), 0.1):
            os.mknod(path, 0o60660, os.makedev(_MAJOR, number))
    return os.path.exists(path)


def _all_of(site: Site, name: str) -> list[str]:
    """Not only the recorded one: an attach may have been killed before it wrote the record."""
    directory = str(site.device_directory(name))
    return [f"/dev/loop{number}" for number in _numbers() if answer.is_loop_of(directory, number)]


def resize(site: Site, name: str, size: int) -> None:
    """Tell the kernel the volume's new size; nothing happens if there is no device."""
    for device in _all_of(site, name):
        with open(device, "rb") as loop:
            status = bytearray(_STATUS_SIZE)
            fcntl.ioctl(loop, _GET_STATUS64, status)
            struct.pack_into("=Q", status, _SIZE_LIMIT_AT, size)
            fcntl.ioctl(loop, _SET_STATUS64, status)


def take_down(site: Site, name: str) -> None:
    """Detach the loop device, wait until it is gone, and unmount nbdfuse's file. The device's unit runs it, too."""
    directory = site.device_directory(name)
    for device in _all_of(site, name):
        run(["blockdev", "--flushbufs", device], allowed=(0, 1), timeout=DEVICE_STOP_TIMEOUT)
        run(["losetup", "--detach", device])
        if not wait_for(lambda at=int(device[9:]): not answer.is_loop_of(str(directory), at), IN_USE_TIMEOUT):  # type: ignore[misc]
            raise NoDeviceError(name=name, reason=f"{device} is still in use and can't be detached")
    (directory / "loop").unlink(missing_ok=True)
    if os.path.ismount(directory / "disk"):
        run(["umount", directory / "disk"])
    if os.path.ismount(directory / "disk"):
        warning("%s is still mounted", directory / "disk")

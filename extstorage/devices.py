# SPDX-License-Identifier: BSD-2-Clause
"""The block device of an attached volume: of the kernel's NBD client where there is one, else loop.

With systemd as PID 1 what keeps it alive is an instance of a template unit, like the server. Elsewhere there is only
loop, with a plain daemon: nobody would keep the watcher that the kernel's client needs.
"""

from __future__ import annotations

from extstorage import answer, loop_device, nbd_device
from extstorage.errors import BadParameterError, NoDeviceError
from extstorage.plan import Device
from extstorage.servers import START_TIMEOUT, Site
from ganeti_plugin.errors import Error, StateError
from ganeti_plugin.files import remove_tree
from ganeti_plugin.log import warning
from ganeti_plugin.run import run


class OldSizeError(StateError):
    template = "the volume {name!r} has grown, but the kernel does not show it in its block device: {reason}"
    hint = "repeat it, or detach the volume and attach it again"


#: What the units run, by the hidden command of archipelago(8).
UNIT_COMMANDS = {
    "device-up": loop_device.set_up,
    "device-down": loop_device.take_down,
}


def loop_unit_of(name: str) -> str:
    return f"snf-archipelago-device@{name}.service"


def nbd_unit_of(name: str) -> str:
    return f"snf-archipelago-nbd@{name}.service"


def check(site: Site, wanted: Device) -> None:
    """Refuse what this node can't do, while the disk is made. An attach does what it can instead, or it would leak."""
    if wanted is Device.NBD and not (site.uses_units and nbd_device.is_there()):
        raise BadParameterError(name="device", reason="is nbd, and the kernel of this node has no NBD driver")


def device_of(site: Site, name: str) -> str:
    return answer.device_of(str(site.device_directory(name)), str(site.directory(name)))


def start_device(site: Site, name: str, wanted: Device) -> str:
    """Have a block device for the volume; answers with its path. One that is there is kept, whatever is wanted."""
    device = device_of(site, name)
    if device:
        return device
    if site.uses_units and _takes_nbd(wanted):
        try:
            run(["systemctl", "restart", nbd_unit_of(name)], timeout=START_TIMEOUT)
        except Error as error:
            warning("%s: no NBD device, so a loop device: %s", name, error)
    if not device_of(site, name):
        _start_loop(site, name)
    device = device_of(site, name)
    if not device:
        raise NoDeviceError(name=name, reason="it vanished")
    return device


def _takes_nbd(wanted: Device) -> bool:
    if wanted is Device.LOOP or not nbd_device.is_there():
        return False
    return wanted is Device.NBD or not nbd_device.shows_partitions()


def _start_loop(site: Site, name: str) -> None:
    if site.uses_units:
        loop_device.prepare(site, name)
        run(["systemctl", "restart", loop_unit_of(name)], timeout=START_TIMEOUT)
        return
    stop_device(site, name)
    loop_device.prepare(site, name)
    loop_device.start_daemon(site, name)
    loop_device.set_up(site, name)


def renew_watcher(site: Site, name: str) -> None:
    """Have another process of today's code watch the device, if there is a watcher: the kernel keeps the device."""
    if site.uses_units:
        run(["systemctl", "try-restart", nbd_unit_of(name)], timeout=START_TIMEOUT)


def resize_device(site: Site, name: str, size: int) -> None:
    """Have the block device, if there is one, show the volume's new size."""
    if not site.device_directory(name).is_dir():
        return
    try:
        nbd_device.resize(site, name, size)
        loop_device.resize(site, name, size)
    except OSError as error:
        raise OldSizeError(name=name, reason=error.strerror) from None


def stop_device(site: Site, name: str) -> None:
    """Take the block device away; nothing happens if there is none."""
    if not site.device_directory(name).is_dir():
        return
    loop_device.take_down(site, name)
    if site.uses_units:
        # Before what keeps them alive: what is to be flushed may need a new connection, and the end of a unit cuts off
        # even a device that is in use.
        nbd_device.take_down(site, name)
        units = [loop_unit_of(name), nbd_unit_of(name)]
        run(["systemctl", "stop", *units])
        run(["systemctl", "reset-failed", *units], allowed=(0, 1))
    remove_tree(site.device_directory(name))

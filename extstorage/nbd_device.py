# SPDX-License-Identifier: BSD-2-Clause
"""A volume as a device of the kernel's NBD client; nbd_watcher.py makes it and keeps it alive.

It is known by its identity, the path of the server's socket. The kernel keeps it, shows it in /sys/block/nbdN/backend,
and compares it with what each later message names: a number that has another volume by now is never touched.
"""

from __future__ import annotations

import os
from pathlib import Path

from extstorage import answer, nbd_netlink
from extstorage.errors import NoDeviceError
from extstorage.nbd_netlink import Driver, find
from extstorage.servers import IN_USE_TIMEOUT, Site, wait_for
from ganeti_plugin.errors import CommandError
from ganeti_plugin.log import warning
from ganeti_plugin.run import run

_MODULE = Path("/sys/module/nbd")


def is_there() -> bool:
    """Whether the kernel has the driver; it is loaded if need be, without partitions: guests make those, not we."""
    if not _MODULE.is_dir():
        try:
            run(["modprobe", "nbd", "max_part=0"])
        except CommandError:
            return False
    return nbd_netlink.is_there()


def shows_partitions() -> bool:
    """Whether somebody loaded the driver so that the kernel would read the partition tables of guests."""
    return (_MODULE / "parameters/max_part").read_text(encoding="ascii").strip() != "0"


def resize(site: Site, name: str, size: int) -> None:
    """Tell the kernel the volume's new size; nothing happens if there is no device."""
    number = find(str(site.socket(name)))
    if number:
        with Driver() as driver:
            driver.resize(number, size, identity=str(site.socket(name)))


def take_down(site: Site, name: str) -> None:
    """Flush and end the device, and make sure that it has ended.

    Whoever closes it last ends it, and that should be us: a device that somebody still uses is not cut off.
    """
    number = find(str(site.socket(name)))
    if not number:
        return
    identity, path = str(site.socket(name)), f"/dev/nbd{number}"
    with Driver() as driver:
        driver.disconnect_on_close(number, True, identity=identity)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            warning("%s: not everything could be flushed: %s", path, error.strerror)
        finally:
            os.close(descriptor)
        if not wait_for(lambda: not answer.is_nbd_of(identity, number), IN_USE_TIMEOUT):
            driver.disconnect_on_close(number, False, identity=identity)
            raise NoDeviceError(name=name, reason=f"{path} is still in use and can't be detached")

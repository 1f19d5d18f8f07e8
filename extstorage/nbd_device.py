# SPDX-License-Identifier: BSD-2-Clause
"""A volume as a device of the kernel's NBD client, and the watcher that hands the kernel a new socket when one dies.

The kernel holds the connection, not the watcher: a watcher may die, too, and its successor finds the device by its
identity. That is the path of the server's socket. The kernel keeps it, shows it in /sys/block/nbdN/backend, and
compares it with what each later message names: a number that has another volume by now is never touched.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from extstorage import answer, control, nbd_netlink
from extstorage.errors import NoDeviceError, ServerError
from extstorage.names import GROWABLE_EXPORT
from extstorage.nbd_netlink import Driver
from extstorage.servers import IN_USE_TIMEOUT, START_TIMEOUT, Site, wait_for
from ganeti_plugin.contract.systemd import notify
from ganeti_plugin.errors import CommandError
from ganeti_plugin.log import warning
from ganeti_plugin.run import run

#: Seconds that requests wait for a new connection before they fail. Longer than any start of a server should take.
PATIENCE = 300

#: Milliseconds after which the kernel looks again at a request: one whose connection was replaced is then sent again.
#: Nothing else comes of it (no NBD_ATTR_TIMEOUT is given), so a slow server is never mistaken for a dead one.
RESEND = 3000

#: Seconds between two looks at whether the device is still there.
_LOOK = 5.0
#: Seconds between two tries to reach a server, and for one handshake.
_RETRY = 0.1
_HANDSHAKE = 10.0

_MOST = 1024
_SYS = Path("/sys/block")
_MODULE = Path("/sys/module/nbd")

# The NBD protocol's handshake (NetworkBlockDevice/nbd, doc/proto.md)
_MAGIC, _OPTIONS_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME = 1


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


def find(site: Site, name: str) -> int:
    """The number of the volume's device; 0 if there is none."""
    return next((number for number in _numbers() if answer.is_nbd_of(str(site.socket(name)), number)), 0)


def _numbers() -> Iterator[int]:
    """The devices that are there, but never the first: Ganeti takes minor 0 for none."""
    shown = (path.name[3:] for path in _SYS.glob("nbd[0-9]*"))
    yield from sorted(int(number) for number in shown if number.isdigit() and number != "0")


def watch(site: Site, name: str) -> None:
    """Make the device, and heal its connection until it is taken away. What the device's unit runs."""
    identity = str(site.socket(name))
    with Driver() as driver:
        number = find(site, name)
        died = bool(number)  # perhaps, while there was no watcher
        if not number:
            number = _connect(driver, site, name)
        (site.device_directory(name) / "nbd").write_text(f"{number}\n", encoding="ascii")
        notify("READY=1")
        while answer.is_nbd_of(identity, number):
            if died:
                _heal(driver, number, identity)
            died = driver.has_died(number, _LOOK)


def _connect(driver: Driver, site: Site, name: str) -> int:
    identity = str(site.socket(name))
    size = int(str(control.call(site.directory(name), name, "status")["size"]))
    server, flags = _handshake(identity)
    with server:
        for number in range(1, _MOST):
            try:
                driver.connect(number, server.fileno(), size=size, flags=flags, identity=identity, patience=PATIENCE)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    continue
                raise NoDeviceError(name=name, reason=f"the kernel says: {error.strerror}") from None
            break
        else:
            raise NoDeviceError(name=name, reason="all NBD devices are in use")
    (_SYS / f"nbd{number}/queue/io_timeout").write_text(f"{RESEND}\n", encoding="ascii")
    if not wait_for(lambda: answer.is_nbd_of(identity, number), START_TIMEOUT):
        raise NoDeviceError(name=name, reason=f"there is no /dev/nbd{number}")
    return number


def _heal(driver: Driver, number: int, identity: str) -> None:
    """Hand the kernel a new socket as soon as there is a server."""
    while answer.is_nbd_of(identity, number):
        try:
            server, _ = _handshake(identity)
            with server:
                driver.reconnect(number, server.fileno(), identity=identity)
        except (OSError, ServerError):
            time.sleep(_RETRY)
            continue
        return


def _handshake(path: str) -> tuple[socket.socket, int]:
    """A connection to the server of a volume, past the handshake, and the server's flags, which the kernel wants."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.settimeout(_HANDSHAKE)
        server.connect(path)
        magic, options, offered = struct.unpack(">8s8sH", _receive(server, 18))
        if (magic, options) != (_MAGIC, _OPTIONS_MAGIC):
            raise ServerError(name=path, message="no NBD greeting")
        export = GROWABLE_EXPORT.encode()
        spoken = offered & (_FIXED_NEWSTYLE | _NO_ZEROES)
        server.sendall(struct.pack(">I8sII", spoken, options, _EXPORT_NAME, len(export)))
        server.sendall(export)
        _, flags = struct.unpack(">QH", _receive(server, 10))
        if not offered & _NO_ZEROES:
            _receive(server, 124)
        server.setblocking(True)
    except BaseException:
        server.close()
        raise
    return server, flags


def _receive(server: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = server.recv(length - len(data))
        if not part:
            raise ServerError(name=str(server.getpeername()), message="nothing; it hung up")
        data += part
    return data


def resize(site: Site, name: str, size: int) -> None:
    """Tell the kernel the volume's new size; nothing happens if there is no device."""
    number = find(site, name)
    if number:
        with Driver() as driver:
            driver.resize(number, size, identity=str(site.socket(name)))


def take_down(site: Site, name: str) -> None:
    """Flush and end the device, and make sure that it has ended.

    Whoever closes it last ends it, and that should be us: a device that somebody still uses is not cut off.
    """
    number = find(site, name)
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

# SPDX-License-Identifier: BSD-2-Clause
"""Makes a device of the kernel's NBD client for a volume, and hands the kernel a new socket when the server dies.

The kernel holds the connection, not the watcher: a watcher may die, too, and its successor finds the device by its
identity. There is a watcher for each device, so it is kept small: it imports little.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from pathlib import Path

from extstorage import answer, control
from extstorage.errors import NoDeviceError, ServerError
from extstorage.names import GROWABLE_EXPORT, check_name
from extstorage.nbd_netlink import Driver, find
from ganeti_plugin.contract.systemd import notify

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

#: The numbers of devices that are tried.
_MOST = 1024

# The NBD protocol's handshake (NetworkBlockDevice/nbd, doc/proto.md)
_MAGIC, _OPTIONS_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME = 1


def main() -> None:
    """What the device's unit runs, for the volume that its argument names."""
    watch(check_name(sys.argv[1] if len(sys.argv) > 1 else "", "the volume name"))


def watch(name: str) -> None:
    """Make the device, and heal its connection until it is taken away."""
    identity = f"{answer.RUN}/{name}/nbd.sock"
    with Driver() as driver:
        number = find(identity)
        died = bool(number)  # perhaps, while there was no watcher
        if not number:
            number = _connect(driver, name, identity)
        Path(f"{answer.DEVICES}/{name}/nbd").write_text(f"{number}\n", encoding="ascii")
        notify("READY=1")
        while answer.is_nbd_of(identity, number):
            if died:
                _heal(driver, number, identity)
            died = driver.has_died(number, _LOOK)


def _connect(driver: Driver, name: str, identity: str) -> int:
    size = int(str(control.call(Path(identity).parent, name, "status")["size"]))
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
    Path(f"/sys/block/nbd{number}/queue/io_timeout").write_text(f"{RESEND}\n", encoding="ascii")
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

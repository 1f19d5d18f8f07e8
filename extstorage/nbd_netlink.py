# SPDX-License-Identifier: BSD-2-Clause
"""What the kernel's NBD driver is told, by generic netlink (linux/nbd-netlink.h, the same since Linux 5.13).

nbd-client(8) is the well kept tool for this, but Debian's (3.24 in 12, 3.26 in 13) cannot say what the survival of a
server's death needs: NBD_ATTR_DEAD_CONN_TIMEOUT, and NBD_CMD_RECONFIGURE to hand in a new socket or size. Its -persist
uses the older ioctls, whose device fails all requests in flight before it connects again. (3.27 speaks netlink there,
but gives up after some tries, and changes no size.) So the three messages are here.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from extstorage.answer import is_nbd_of

if TYPE_CHECKING:
    import socket

# linux/netlink.h, linux/genetlink.h
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_GENL_ID_CTRL = 0x10
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME, _CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
_CTRL_ATTR_MCAST_GRP_ID = 2
_NETLINK_GENERIC = 16
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_TYPE_MASK = 0x3FFF

# linux/nbd-netlink.h
_FAMILY = b"nbd\0"
_CONNECT, _RECONFIGURE, _LINK_DEAD = 1, 3, 4
_INDEX, _SIZE_BYTES, _BLOCK_SIZE_BYTES, _SERVER_FLAGS, _CLIENT_FLAGS, _SOCKETS = 1, 2, 3, 5, 6, 7
_DEAD_CONN_TIMEOUT, _BACKEND_IDENTIFIER = 8, 10
_SOCK_ITEM, _SOCK_FD = 1, 1
_DISCONNECT_ON_CLOSE = 2

#: Bytes: what a disk has, whatever pages the server has.
_SECTOR = 512

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")

#: Bytes of an answer, and seconds for it.
_ANSWER_LIMIT = 65536
_ANSWER_TIMEOUT = 30.0


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, value) of each attribute."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _u64(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=Q", value))


class Driver:
    """The running kernel's NBD driver. Raises OSError as the kernel refuses; ENOENT when there is no such driver here.

    (A network namespace other than the first has none: the driver speaks in the first only.)
    """

    def __init__(self) -> None:
        self._number = 0
        self._socket = self._open()
        try:
            self._family, self._group = self._resolve()
            self._events = self._open()
        except BaseException:
            self._socket.close()
            raise
        self._events.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, self._group)
        self._events.setblocking(False)

    @staticmethod
    def _open() -> socket.socket:
        import socket

        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        opened.bind((0, 0))
        opened.settimeout(_ANSWER_TIMEOUT)
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._events.close()

    def connect(self, index: int, sock: int, *, size: int, flags: int, identity: str, patience: int) -> None:
        """Make /dev/nbd<index> of a connected socket. EBUSY: that one is in use.

        There is no NBD_ATTR_TIMEOUT: with one, a slow server's request would be sent again while it still works on it.
        And one connection only, since a driver with several does the same after its default timeout (nbd_xmit_timeout).
        """
        self._tell(
            _CONNECT,
            *(_u32(_INDEX, index), _u64(_SIZE_BYTES, size), _u64(_BLOCK_SIZE_BYTES, _SECTOR)),
            *(_u64(_SERVER_FLAGS, flags), _u64(_DEAD_CONN_TIMEOUT, patience)),
            *(attribute(_BACKEND_IDENTIFIER, identity.encode() + b"\0"), _sockets(sock)),
        )

    def reconnect(self, index: int, sock: int, *, identity: str) -> None:
        """Replace a dead connection; nothing happens if it lives. EINVAL: the device is not of this identity."""
        self._reconfigure(index, identity, _sockets(sock))

    def resize(self, index: int, size: int, *, identity: str) -> None:
        self._reconfigure(index, identity, _u64(_SIZE_BYTES, size))

    def disconnect_on_close(self, index: int, wanted: bool, *, identity: str) -> None:
        """Whether the device shall end when nobody has it open any more."""
        self._reconfigure(index, identity, _u64(_CLIENT_FLAGS, _DISCONNECT_ON_CLOSE if wanted else 0))

    def has_died(self, index: int, seconds: float) -> bool:
        """Wait for news; whether a connection of the device has (or, when news were lost, may have) died."""
        ready, _, _ = select.select([self._events], [], [], seconds)
        died = False
        while ready:
            try:
                message = self._events.recv(_ANSWER_LIMIT)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more news than the socket could hold
                return True
            died = died or _is_death(message, index)
        return died

    def _reconfigure(self, index: int, identity: str, what: bytes) -> None:
        known = attribute(_BACKEND_IDENTIFIER, identity.encode() + b"\0")
        self._tell(_RECONFIGURE, _u32(_INDEX, index), known, what)

    def _tell(self, command: int, *parts: bytes) -> None:
        self._ask(self._family, command, *parts)

    def _resolve(self) -> tuple[int, int]:
        answer = self._ask(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, attribute(_CTRL_ATTR_FAMILY_NAME, _FAMILY))
        found = dict(attributes(answer[_HEADER.size + _GENERIC.size :]))
        (family,) = struct.unpack("=H", found[_CTRL_ATTR_FAMILY_ID])
        _, group = next(attributes(found[_CTRL_ATTR_MCAST_GROUPS]))
        return family, struct.unpack("=I", dict(attributes(group))[_CTRL_ATTR_MCAST_GRP_ID])[0]

    def _ask(self, family: int, command: int, *parts: bytes) -> bytes:
        """Send one message; the last one before the kernel's acknowledgement, empty when that is all."""
        self._number += 1
        body = _GENERIC.pack(command, 1, 0) + b"".join(parts)
        flags = _NLM_F_REQUEST | _NLM_F_ACK
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), family, flags, self._number, 0) + body)
        answer = b""
        while True:
            message = self._socket.recv(_ANSWER_LIMIT)
            _, kind, _, number, _ = _HEADER.unpack_from(message)
            if number != self._number:
                continue
            if kind != _NLMSG_ERROR:
                answer = message
                continue
            (status,) = struct.unpack_from("=i", message, _HEADER.size)
            if status:
                raise OSError(-status, os.strerror(-status))
            return answer


def _sockets(sock: int) -> bytes:
    return attribute(_SOCKETS, attribute(_SOCK_ITEM, _u32(_SOCK_FD, sock)))


def _is_death(message: bytes, index: int) -> bool:
    command, _, _ = _GENERIC.unpack_from(message, _HEADER.size)
    found = dict(attributes(message[_HEADER.size + _GENERIC.size :]))
    return command == _LINK_DEAD and found.get(_INDEX) == struct.pack("=I", index)


def find(identity: str) -> int:
    """The number of the device with this identity; 0 if there is none. (The first is never ours: see answer.py.)"""
    shown = (path.removeprefix("nbd") for path in os.listdir("/sys/block") if path.startswith("nbd"))
    numbers = sorted(int(number) for number in shown if number.isdigit() and number != "0")
    return next((number for number in numbers if is_nbd_of(identity, number)), 0)


def is_there() -> bool:
    """Whether the kernel has the driver and hears us."""
    try:
        Driver().__exit__(None, None, None)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EPERM):
            return False
        raise
    return True

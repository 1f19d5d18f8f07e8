# SPDX-License-Identifier: BSD-2-Clause
"""The instance's disks as open descriptors: a block device, a file, or a connection to an NBD server.

Ganeti hands over DISK_n_PATH, DISK_n_URI, or both; the path is preferred. What is opened here is what everything later
uses: nobody opens a disk by its name a second time.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs, urlencode, urlsplit

from ganeti_plugin.contract.os import OsDisk
from ganeti_plugin.errors import InputError, StateError

_BLKGETSIZE64 = 0x80081272

#: Seconds to wait for an NBD server that does not answer.
_CONNECT_TIMEOUT = 10.0


class TargetError(InputError):
    template = "disk {index}: {reason}"


class TargetStateError(StateError):
    template = "disk {index}: {place} cannot be opened: {reason}"


class Kind(StrEnum):
    DEVICE = "device"
    FILE = "file"
    NBD = "nbd"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a disk is. For NBD, `path` is the server's socket and `export` the name asked for."""

    index: int
    kind: Kind
    path: str
    export: str = ""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An open disk. `identity` is the same whatever name it was opened by, and names its lock."""

    place: Place
    fd: int
    identity: str
    #: Bytes; None where only the server knows (NBD).
    size: int | None


def place_of(disk: OsDisk) -> Place:
    """The place of a disk of the contract."""
    return place(disk.index, disk.path, disk.uri)


def place(index: int, path: str | None, uri: str | None) -> Place:
    if path is not None:
        return Place(index=index, kind=Kind.DEVICE, path=path)
    assert uri is not None
    return _nbd_place(index, uri)


def _nbd_place(index: int, uri: str) -> Place:
    """nbd:unix:SOCKET[:exportname=NAME] or nbd+unix:///NAME?socket=SOCKET; QEMU's options after a comma are cut."""
    text = uri.split(",", 1)[0]
    if match := re.fullmatch(r"nbd:unix:(/[^:?]+)(?::exportname=([A-Za-z0-9._-]*))?", text):
        return Place(index=index, kind=Kind.NBD, path=match[1], export=match[2] or "")
    parts = urlsplit(text)
    sockets = parse_qs(parts.query).get("socket", [])
    if parts.scheme != "nbd+unix" or parts.netloc or len(sockets) != 1 or not sockets[0].startswith("/"):
        raise TargetError(index=index, reason=f"the URI {text[:200]!r} is not one of a local NBD server")
    export = parts.path.lstrip("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]*", export):
        raise TargetError(index=index, reason="the URI has an export name that is not supported")
    return Place(index=index, kind=Kind.NBD, path=sockets[0], export=export)


def uri_of(where: Place) -> str:
    """The place of an NBD disk as libnbd's programs write it."""
    return f"nbd+unix:///{where.export}?{urlencode({'socket': where.path})}"


@contextmanager
def opened(where: Place) -> Iterator[Target]:
    """Open a disk for reading and writing; closed at the end."""
    target = _connect(where) if where.kind is Kind.NBD else _open(where)
    try:
        yield target
    finally:
        os.close(target.fd)


def _open(where: Place) -> Target:
    try:
        fd = os.open(where.path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TargetStateError(index=where.index, place=where.path, reason=error.strerror) from None
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        size = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        return Target(place=where, fd=fd, identity=f"device-{major}-{minor}", size=size)
    if stat.S_ISREG(status.st_mode):
        as_file = Place(index=where.index, kind=Kind.FILE, path=where.path)
        identity = f"file-{status.st_dev}-{status.st_ino}"
        return Target(place=as_file, fd=fd, identity=identity, size=status.st_size)
    os.close(fd)
    raise TargetError(index=where.index, reason=f"{where.path} is neither a block device nor a file")


def _connect(where: Place) -> Target:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    link.settimeout(_CONNECT_TIMEOUT)
    try:
        link.connect(where.path)
        status = os.stat(where.path)
    except OSError as error:
        link.close()
        reason = error.strerror or "no answer"
        raise TargetStateError(index=where.index, place=where.path, reason=reason) from None
    link.setblocking(True)
    identity = f"socket-{status.st_dev}-{status.st_ino}"
    return Target(place=where, fd=link.detach(), identity=identity, size=None)

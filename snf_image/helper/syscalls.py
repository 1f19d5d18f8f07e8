# SPDX-License-Identifier: BSD-2-Clause
"""The system and library calls that Python 3.11's standard library does not offer, one function each."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

SYS_FINIT_MODULE = 313
SYS_OPENAT2 = 437

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

RB_POWER_OFF = 0x4321FEDC

BLKRRPART = 0x125F
BLKSSZGET = 0x1268
BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
FITRIM = 0xC0185879

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _check(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def openat2(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as if `directory` were the root of the file system: links cannot lead out of it."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    encoded = ctypes.c_char_p(os.fsencode(path))
    size = ctypes.c_size_t(ctypes.sizeof(how))
    result = _libc.syscall(ctypes.c_long(SYS_OPENAT2), ctypes.c_int(directory), encoded, ctypes.byref(how), size)
    return _check(int(result), path)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    texts = (source.encode(), os.fsencode(target), kind.encode())
    result = _libc.mount(*texts, ctypes.c_ulong(flags), ctypes.c_char_p(options.encode() or None))
    _check(int(result), target)


def umount(target: str) -> None:
    _check(int(_libc.umount2(os.fsencode(target), 0)), target)


def insert_module(path: str) -> None:
    """Load a kernel module file; one that is already there is fine."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = ctypes.c_long(SYS_FINIT_MODULE)
        _check(int(_libc.syscall(number, ctypes.c_int(descriptor), ctypes.c_char_p(b""), ctypes.c_int(0))), path)
    except FileExistsError:
        pass
    finally:
        os.close(descriptor)


def power_off() -> None:
    _libc.reboot(ctypes.c_int(RB_POWER_OFF))


def add_entropy(seed: bytes) -> None:
    """Feed the kernel's random pool, count every bit, and have the generator use it at once."""
    bits = (len(seed) * 8).to_bytes(4, "little") + len(seed).to_bytes(4, "little")
    descriptor = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, RNDADDENTROPY, bits + seed)
        fcntl.ioctl(descriptor, RNDRESEEDCRNG)
    finally:
        os.close(descriptor)


def disk_size(descriptor: int) -> int:
    """Bytes of a block device."""
    return int.from_bytes(fcntl.ioctl(descriptor, BLKGETSIZE64, bytes(8)), "little")


def sector_size(descriptor: int) -> int:
    return int.from_bytes(fcntl.ioctl(descriptor, BLKSSZGET, bytes(4)), "little")


def trim(place: str) -> int:
    """Discard all free space of the file system mounted there; the bytes, as it counts them."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        everything = struct.pack("=QQQ", 0, (1 << 64) - 1, 0)
        return int(struct.unpack("=QQQ", fcntl.ioctl(descriptor, FITRIM, everything))[1])
    finally:
        os.close(descriptor)


def zero_out(descriptor: int, start: int, length: int) -> None:
    """Make bytes of a block device read as zeros, without space where the disk can do that."""
    fcntl.ioctl(descriptor, BLKZEROOUT, struct.pack("=QQ", start, length))


def reread_partitions(descriptor: int) -> None:
    fcntl.ioctl(descriptor, BLKRRPART)


def crypt(password: bytes, setting: bytes) -> str:
    """crypt(3) of libcrypt, which every Debian has; the module `crypt` is gone from Python 3.13."""
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    result: bytes | None = library.crypt(ctypes.c_char_p(password), ctypes.c_char_p(setting))
    if result is None or result.startswith(b"*"):
        raise ValueError("the library refuses this way of hashing a password")
    return result.decode("ascii")

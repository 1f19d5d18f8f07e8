# SPDX-License-Identifier: BSD-2-Clause
"""What the files store needs of the file system it is on, beside what Python's `os` has."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

#: Of all that a store is made of.
FILE_MODE = 0o640
FOLDER_MODE = 0o750

#: What a file system says that can't make holes.
NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS)

#: FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE of <linux/falloc.h>.
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01

#: Of sync_file_range(2); a length of 0 is all up to the end.
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make a range of a file read as zeros and give its space back, with fallocate(2). The file's size stays.

    Raises OSError; its number is one of `NO_HOLES` where that can't be done.
    """
    _check(_libc.fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)))


def begin_sync(descriptor: int) -> None:
    """Have the kernel begin to write a file's data, with sync_file_range(2), which waits where a disk's queue is full.

    What the disk refuses later, the next fdatasync(2) tells. Raises OSError, which nobody else is told.
    """
    begin = ctypes.c_int64(0)
    _check(_libc.sync_file_range(descriptor, begin, begin, _SYNC_FILE_RANGE_WRITE))


def syncfs(descriptor: int) -> None:
    """Have all that was written to a file system survive a power loss. Raises OSError."""
    _check(_libc.syncfs(descriptor))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """write(2) until everything is written."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class FileSystem:
    """One syncfs(2) for many files, instead of an fsync(2) for each.

    To be opened before they are written: then it hears of each error, also if somebody else has heard of it before.
    """

    _descriptor = -1

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def sync(self) -> None:
        syncfs(self._descriptor)

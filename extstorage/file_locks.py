# SPDX-License-Identifier: BSD-2-Clause
"""Locks of volumes in files.

    maps/NAME/lock               flock(2): the lock of the volume; its content is the record of its holder
    maps/NAME/wanted             there while the other side of a migration asks the holder for the lock

The kernel releases a lock when its holder ends, however that comes; where nodes share the file system, the file server
does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
from pathlib import Path

from extstorage.errors import HeldError
from extstorage.file_system import FILE_MODE
from extstorage.store import Holder
from ganeti_plugin.files import lock_within, remove


class FileLock:
    """A lock that is held: as long as the descriptor is open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def holder(self) -> Holder | None:
        return _read_holder(self._descriptor)

    def sure_until(self) -> float:
        return math.inf

    def record(self, holder: Holder) -> None:
        data = json.dumps(holder._asdict()).encode()
        os.pwrite(self._descriptor, data.ljust(512), 0)
        os.ftruncate(self._descriptor, max(512, len(data)))
        os.fsync(self._descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError, RecursionError):
        return None


class FileLocks:
    """The locks of all volumes of a store, whose folders are in the directory `maps`."""

    def __init__(self, maps: Path) -> None:
        self._maps = maps

    def loss(self, name: str) -> str:
        try:
            descriptor = os.open(self._maps / name / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return ""
        try:
            last = _read_holder(descriptor)
        finally:
            os.close(descriptor)
        return last.loss if last else ""

    def take(self, name: str, shared: bool, patience: float) -> FileLock | None:
        """None if there is no such volume. Raises HeldError when somebody else has had it for `patience` seconds."""
        while (self._maps / name).is_dir():
            try:
                descriptor = self._open_lock(name, shared)
            except FileNotFoundError:
                continue
            lock = FileLock(descriptor)
            try:
                if not lock_within(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience):
                    raise HeldError(name=name, holder=lock.holder() or "an unknown holder")
            except BaseException:
                lock.release()
                raise
            if self._is_lock_of(name, descriptor):
                return lock
            lock.release()
        return None

    def _is_lock_of(self, name: str, descriptor: int) -> bool:
        """Not if the volume was removed, or got another name, after the file was opened: another may have its name."""
        for path in (self._maps / name / "lock", self._maps / name / "map"):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return True
        return False

    def _open_lock(self, name: str, shared: bool) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._maps / name / "lock", flags | os.O_RDWR | os.O_CREAT, FILE_MODE)
        except OSError as error:
            if error.errno != errno.EROFS or not shared:
                raise
            # Who only reads needs no lock where nobody can remove anything.
            return os.open(self._maps / name / "map", flags | os.O_RDONLY)

    def ask(self, name: str) -> None:
        os.close(os.open(self._maps / name / "wanted", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))

    def is_asked_for(self, name: str) -> bool:
        return (self._maps / name / "wanted").exists()

    def forget_request(self, name: str) -> None:
        remove(self._maps / name / "wanted")

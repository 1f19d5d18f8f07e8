# SPDX-License-Identifier: BSD-2-Clause
"""Files that survive a crash: atomic replacement, durable directories, locks that die with their owner."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ganeti_plugin.errors import StateError

#: Seconds between two tries to get a lock.
_LOCK_POLL = 0.01


class LockedError(StateError):
    template = "{path} is locked by another process"
    hint = "wait for it to end, then try again"


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable (rename(2) alone is not)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace `path` by `data`: a reader sees the old content or the new one, also after a power loss."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        fsync_directory(path.parent)


def remove(path: Path) -> bool:
    """Remove a file if it is there; tell whether it was."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, as far as that is possible."""
    # Here, for it takes as long to import as all of this module's work.
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes; one that is larger is refused with StateError."""
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise StateError(message=f"{path} is larger than {limit} bytes")
    return data


@contextlib.contextmanager
def locked(path: Path, *, timeout: float = 30.0, shared: bool = False, mode: int = 0o600) -> Iterator[int]:
    """Hold flock(2) on `path` (made if missing); yields the descriptor. Dies with the process, leaves the file.

    `timeout` is in seconds; LockedError when it passes.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        if not lock_within(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, timeout):
            raise LockedError(path=path)
        yield descriptor
    finally:
        os.close(descriptor)


def lock_within(descriptor: int, kind: int, timeout: float) -> bool:
    """Try to get flock(2) for up to `timeout` seconds, at least once; tells whether it is held now.

    `kind` is fcntl.LOCK_SH or fcntl.LOCK_EX. Raises OSError when it is not another holder that is in the way.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            # On NFS this is a lock as of fcntl(2), which may say either.
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOCK_POLL)

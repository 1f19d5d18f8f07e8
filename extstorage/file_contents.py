# SPDX-License-Identifier: BSD-2-Clause
"""Content blocks in files: immutable, named by the digest of their bytes, and shared by all maps that name them.

    content/AA/BB/DIGEST         a content block: its bytes, without the pages of zeros at its end
    content/new/DIGEST.TOKEN     the same, not durable yet
    content/lock                 held shared while one is put or touched, exclusively while one is removed

A block gets its name when it is durable. So a name tells that the bytes are there, also after a power loss, and nobody
has to read them to know.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from extstorage.file_system import FILE_MODE, FOLDER_MODE, FileSystem
from extstorage.names import PAGE, token
from ganeti_plugin.files import remove

#: In seconds.
_DAY = 86400


class FileContents:
    """The content blocks of one store, whose folder `content` is `directory`. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        #: Where files get their bytes before they have their names.
        self.passing = directory / "new"
        # Complete, and maybe not durable yet.
        self._unnamed: dict[bytes, Path] = {}
        self._unsynced = False
        self._failure: Exception | None = None
        self._file_system: FileSystem | None = None
        self._syncing = threading.Lock()
        self._mutex = threading.Lock()

    def path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._directory / name[:2] / name[2:4] / name

    def put(self, digest: bytes, data: memoryview) -> bool:
        path = self.path(digest)
        with self._mutex:
            if self._file_system is None:
                self._file_system = FileSystem(self._directory)
            if digest in self._unnamed:
                return False
        if self._touch(path):
            # Its name may be so new that who made it has not synced it yet.
            with self._mutex:
                self._unsynced = True
            return False
        new = self.passing / f"{path.name}.{token()}"
        try:
            _write_new(new, data)
        except BaseException:
            remove(new)
            raise
        with self._mutex:
            # Not before it is complete: another thread may be in `sync`.
            if self._unnamed.setdefault(digest, new) is new:
                return True
        remove(new)
        return False

    def _touch(self, path: Path) -> bool:
        """Give a content block a new version; answers whether it is there."""
        with self._locked(fcntl.LOCK_SH):
            now = time.time_ns()
            try:
                os.utime(path, ns=(now, now))
            except FileNotFoundError:
                return False
            return True

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """A block gets its name only when it is durable: a name of which the bytes are lost would be taken for it."""
        # One after the other: a thread that has nothing to do must not be done before the one that does it.
        with self._syncing:
            if self._failure is not None:
                # The kernel reports lost pages once; after that, this process may not claim anything again.
                raise self._failure
            with self._mutex:
                new, self._unnamed = self._unnamed, {}
                unsynced, self._unsynced = self._unsynced or bool(new), False
            if not unsynced:
                return
            try:
                self._sync_file_system()
                if new:
                    self._give_names(new)
                    self._sync_file_system()
            except Exception as error:
                self._failure = error
                raise

    def _give_names(self, new: Mapping[bytes, Path]) -> None:
        folders = set()
        with self._locked(fcntl.LOCK_SH):
            for digest, temporary in new.items():
                path = self.path(digest)
                if path.parent not in folders:
                    path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
                    folders.add(path.parent)
                os.rename(temporary, path)

    def _sync_file_system(self) -> None:
        assert self._file_system is not None
        self._file_system.sync()

    def versions(self) -> Iterator[tuple[bytes, object]]:
        for entry in self._files():
            with contextlib.suppress(FileNotFoundError, ValueError):
                yield bytes.fromhex(entry.name), entry.stat(follow_symlinks=False).st_mtime_ns

    def digests(self) -> Iterator[bytes]:
        for entry in self._files():
            with contextlib.suppress(ValueError):
                yield bytes.fromhex(entry.name)

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """Folder by folder: there may be millions."""
        for first in _hex_folders(self._directory):
            for second in _hex_folders(first):
                with os.scandir(second) as entries:
                    yield from sorted(entries, key=lambda entry: entry.name)

    def abandoned(self) -> list[Path]:
        """A new block that nobody gave its name for a day belongs to an import that was killed."""
        old = time.time() - _DAY
        return [path for path in self.passing.iterdir() if _written(path) < old]

    def used(self, digest: bytes) -> int:
        try:
            return self.path(digest).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def remove(self, digest: bytes, version: object) -> int:
        path = self.path(digest)
        with self._locked(fcntl.LOCK_EX):
            try:
                status = path.stat()
            except FileNotFoundError:
                return 0
            if status.st_mtime_ns != version:
                return 0
            os.unlink(path)
        return status.st_blocks * 512


def _written(path: Path) -> float:
    """When a file was last written; one that got its name just now is young."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _write_new(path: Path, data: memoryview) -> None:
    """Past the page cache, where that is possible: it is not read soon, and a copy there costs more than the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        if len(data) % PAGE == 0:
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except OSError as error:
                # The file system or the memory's alignment does not allow it.
                if error.errno != errno.EINVAL or not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                    raise
                fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
    finally:
        os.close(descriptor)


def _hex_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if len(path.name) == 2)

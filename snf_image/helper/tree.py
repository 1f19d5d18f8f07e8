# SPDX-License-Identifier: BSD-2-Clause
"""Reads and replaces files inside a mounted hostile tree (threats H35-H38).

Every path is resolved by the kernel with the tree as its root (openat2, RESOLVE_IN_ROOT), so links, absolute ones too,
stay inside. What is read must be a regular file of a bounded size. What is written is a new file that replaces the old
one by rename: the last component is never followed, hard links elsewhere keep their old content, and a reader sees the
old file or the new one. Owner, mode and security label of the old file are kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from snf_image.helper import syscalls
from snf_image.helper.errors import TaskError

#: Bytes; no file that the tasks edit is near this.
READ_LIMIT = 1 << 20

#: Directories in each other; each costs a descriptor while one of them is walked.
WALK_DEPTH = 100

#: Errors of a path that leads to nothing: missing, through a file, a loop of links, a link into /proc.
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)

_LABELS = ("security.selinux", "system.posix_acl_access")


class Tree:
    """A directory as the root of all paths; `path` arguments look like "etc/hostname"."""

    def __init__(self, descriptor: int) -> None:
        self._root = descriptor

    @classmethod
    def at(cls, path: str) -> Tree:
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def close(self) -> None:
        os.close(self._root)

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """Open below the root. Never blocks on a FIFO, never takes a terminal (openat2 refuses both with O_PATH)."""
        extra = 0 if flags & os.O_PATH else os.O_NOCTTY | os.O_NONBLOCK
        return syscalls.openat2(self._root, "/" + path.lstrip("/"), flags | extra, mode)

    def exists(self, path: str) -> bool:
        """Whether the path leads to anything inside the tree."""
        return self._leads_to(path, os.O_PATH)

    def is_directory(self, path: str) -> bool:
        return self._leads_to(path, os.O_PATH | os.O_DIRECTORY)

    def _leads_to(self, path: str, flags: int) -> bool:
        try:
            os.close(self.open(path, flags))
        except OSError as error:
            if error.errno in _LEADS_NOWHERE:
                return False
            raise TaskError(f"/{path} in the image cannot be examined: {error.strerror}") from None
        return True

    def names(self, path: str, limit: int = 4096) -> list[str]:
        """The sorted names in a directory; none when it is missing."""
        try:
            descriptor = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise TaskError(f"/{path} in the image cannot be listed: {error.strerror}") from None
        try:
            found: list[str] = []
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if len(found) >= limit:
                        raise TaskError(f"/{path} in the image has more than {limit} entries")
                    found.append(entry.name)
            return sorted(found)
        finally:
            os.close(descriptor)

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | None:
        """The content of a regular file; None when there is no such file."""
        try:
            descriptor = self.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise TaskError(f"/{path} in the image cannot be read: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TaskError(f"/{path} in the image is {_kind(status.st_mode)}, not a regular file")
            if status.st_size > limit:
                raise TaskError(f"/{path} in the image has {status.st_size} bytes, allowed are {limit}")
            return _read_all(descriptor, limit, path)
        finally:
            os.close(descriptor)

    def read_text(self, path: str, limit: int = READ_LIMIT) -> str | None:
        """As `read`; bytes that are no UTF-8 survive a later `write_text`."""
        data = self.read(path, limit)
        return None if data is None else data.decode("utf-8", "surrogateescape")

    def write_text(self, path: str, text: str, **options: int | None) -> None:
        self.write(path, text.encode("utf-8", "surrogateescape"), **options)

    def write(
        self, path: str, data: bytes, mode: int | None = None, uid: int | None = None, gid: int | None = None
    ) -> None:
        """Replace or make a file. What is not given is the old file's, or 0644 and root's."""
        with self._parent(path) as (directory, name):
            old = _status(directory, name)
            if old is not None and not stat.S_ISREG(old.st_mode) and not stat.S_ISLNK(old.st_mode):
                raise TaskError(f"/{path} in the image is {_kind(old.st_mode)}, not a regular file")
            kept = old if old is not None and stat.S_ISREG(old.st_mode) else None
            try:
                self._replace(directory, name, data, _attributes(kept, mode, uid, gid), labels_from=kept is not None)
            except OSError as error:
                raise TaskError(f"/{path} in the image cannot be written: {error.strerror}") from None

    def _replace(
        self, directory: int, name: str, data: bytes, attributes: tuple[int, int, int], *, labels_from: bool
    ) -> None:
        mode, uid, gid = attributes
        temporary = f".{name[:200]}.snf-image.{os.urandom(4).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with open(descriptor, "wb", buffering=0, closefd=False) as stream:
                stream.write(data)
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            if labels_from:
                _copy_labels(directory, name, descriptor)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        finally:
            os.close(descriptor)

    def remove(self, path: str) -> bool:
        """Remove a name (a link itself, not what it leads to); tell whether it was there. Directories stay."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._parent(path) as (directory, name):
            if _status(directory, name) is None:
                return False
            try:
                os.unlink(name, dir_fd=directory)
            except OSError as error:
                raise TaskError(f"/{path} in the image cannot be removed: {error.strerror}") from None
            return True
        return False

    def walk(self, path: str) -> Iterator[tuple[str, int]]:
        """Everything below a directory, the deepest first, with its mode; never through a link. Nothing if missing."""
        try:
            descriptor = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in _LEADS_NOWHERE:
                return
            raise TaskError(f"/{path} in the image cannot be listed: {error.strerror}") from None
        yield from _walk(descriptor, path.strip("/"), WALK_DEPTH)

    def empty(self, path: str) -> int:
        """Remove everything below a directory, which stays; the number of names that were no directories."""
        count = 0
        for name, mode in self.walk(path):
            if stat.S_ISDIR(mode):
                self._remove_directory(name)
            else:
                count += self.remove(name)
        return count

    def _remove_directory(self, path: str) -> None:
        with self._parent(path) as (directory, name):
            try:
                os.rmdir(name, dir_fd=directory)
            except OSError as error:
                if error.errno != errno.EBUSY:  # a file system is mounted here: empty is all that it can be
                    raise TaskError(f"/{path} in the image cannot be removed: {error.strerror}") from None

    def truncate(self, path: str) -> bool:
        """Make a regular file empty, with owner and mode as they are; tell whether it was there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._parent(path) as (directory, name):
            status = _status(directory, name)
            if status is None or not stat.S_ISREG(status.st_mode):
                return False
            try:
                flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                os.close(os.open(name, flags, dir_fd=directory))
            except OSError as error:
                raise TaskError(f"/{path} in the image cannot be emptied: {error.strerror}") from None
            return True
        return False

    def rename(self, path: str, name: str) -> None:
        """Give a file another name in its directory."""
        with self._parent(path) as (directory, old):
            try:
                os.rename(old, name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError as error:
                raise TaskError(f"/{path} in the image cannot be renamed: {error.strerror}") from None

    def make_directories(self, path: str, mode: int, uid: int = 0, gid: int = 0) -> list[str]:
        """Make the missing directories of a path with this mode and owner; the paths that were made."""
        made: list[str] = []
        so_far = ""
        for part in _parts(path):
            so_far = f"{so_far}/{part}".lstrip("/")
            if self.is_directory(so_far):
                continue
            with self._parent(so_far) as (directory, name):
                try:
                    os.mkdir(name, 0o700, dir_fd=directory)
                except OSError as error:
                    raise TaskError(f"the directory /{so_far} cannot be made: {error.strerror}") from None
                descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                try:
                    os.fchown(descriptor, uid, gid)
                    os.fchmod(descriptor, mode)
                finally:
                    os.close(descriptor)
            made.append(so_far)
        return made

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        parts = _parts(path)
        if not parts:
            raise TaskError("an empty path in the image")
        where = "/".join(parts[:-1])
        try:
            directory = self.open(where, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise FileNotFoundError(errno.ENOENT, "no such directory in the image", "/" + where) from None
            raise TaskError(f"/{where} in the image is not a usable directory: {error.strerror}") from None
        try:
            yield directory, parts[-1]
        finally:
            os.close(directory)


def _walk(descriptor: int, path: str, depth: int) -> Iterator[tuple[str, int]]:
    """Takes the descriptor over."""
    try:
        if not depth:
            raise TaskError(f"/{path[:200]} in the image is nested too deeply")
        for name in sorted(os.listdir(descriptor)):
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                yield from _walk(os.open(name, flags, dir_fd=descriptor), f"{path}/{name}", depth - 1)
            yield f"{path}/{name}", mode
    finally:
        os.close(descriptor)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise TaskError(f"the path {path[:200]!r} leads upwards")
    return parts


def _status(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TaskError(f"{name!r} in the image cannot be examined: {error.strerror}") from None


def _attributes(old: os.stat_result | None, mode: int | None, uid: int | None, gid: int | None) -> tuple[int, int, int]:
    old_mode, old_uid, old_gid = (0o644, 0, 0) if old is None else (stat.S_IMODE(old.st_mode), old.st_uid, old.st_gid)
    return (
        old_mode if mode is None else mode,
        old_uid if uid is None else uid,
        old_gid if gid is None else gid,
    )


def _copy_labels(directory: int, name: str, to: int) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        for label in _LABELS:
            with contextlib.suppress(OSError):
                os.setxattr(to, label, os.getxattr(source, label))
    finally:
        os.close(source)


def _read_all(descriptor: int, limit: int, path: str) -> bytes:
    data = bytearray()
    while chunk := os.read(descriptor, min(65536, limit + 1 - len(data))):
        data += chunk
        if len(data) > limit:
            raise TaskError(f"/{path} in the image grew beyond {limit} bytes while it was read")
    return bytes(data)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((word for check, word in kinds if check(mode)), "a device")

# SPDX-License-Identifier: BSD-2-Clause
"""Where an image comes from: nowhere (null: the disk is a clone already), or a file of the image directory.

The file is opened once, without following a link, checked and judged on that descriptor, and read through it: what was
checked is what is used (threats H13, H14, H52).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ganeti_plugin import containers
from ganeti_plugin.containers import Format, Verdict
from ganeti_plugin.errors import InputError, StateError

NULL = "null"


class SourceError(InputError):
    template = "image {name}: {reason}"


class ChangedError(StateError):
    template = "image {name} was changed while it was read; what is on the disk now is not usable"
    hint = "do it again when nobody writes to the image"


@dataclass(frozen=True, kw_only=True)
class Source:
    """An open and judged image."""

    name: str
    fd: int
    verdict: Verdict
    #: Time of the last change when it was judged, in nanoseconds.
    changed: int

    def check_unchanged(self) -> None:
        """Raise ChangedError if the file is not what was judged (H15)."""
        status = os.fstat(self.fd)
        if (status.st_size, status.st_mtime_ns) != (self.verdict.file_size, self.changed):
            raise ChangedError(name=self.name)


def declared_format(name: str) -> Format:
    """The container format that a file's name declares: qcow2 by its suffix, raw otherwise."""
    return Format.QCOW2 if name.lower().endswith(".qcow2") else Format.RAW


@contextmanager
def opened(name: str, directory: Path) -> Iterator[Source | None]:
    """The image of that name, judged; None for null. Closed at the end."""
    if name == NULL:
        yield None
        return
    fd = _open(name, directory)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(name=name, reason="it is not a regular file")
        if status.st_nlink != 1:
            raise SourceError(name=name, reason="the file has a second name (a hard link), by which it may be changed")
        verdict = containers.judge(fd, declared_format(name))
        yield Source(name=name, fd=fd, verdict=verdict, changed=status.st_mtime_ns)
    finally:
        os.close(fd)


def _open(name: str, directory: Path) -> int:
    if "/" in name or name in (".", ".."):
        raise SourceError(name=name, reason="it is not the name of a file")
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(name=name, reason=f"{directory} cannot be opened: {error.strerror}") from None
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise SourceError(name=name, reason=f"there is no such file in {directory}") from None
    except OSError as error:
        reason = "it is a symbolic link" if os.path.islink(directory / name) else error.strerror
        raise SourceError(name=name, reason=reason) from None
    finally:
        os.close(folder)

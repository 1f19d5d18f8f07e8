# SPDX-License-Identifier: BSD-2-Clause
"""Export and import of one disk as the stream of its bytes; what they mean is nobody's business here (H16, H17)."""

from __future__ import annotations

import contextlib
import os

from ganeti_plugin.errors import CommandError, StateError
from ganeti_plugin.run import reason_of, spawn
from snf_image.deploy import NBDCOPY, size_of
from snf_image.targets import Kind, Target, uri_of

_CHUNK = 1 << 20

#: Seconds for one disk; Ganeti's own limit is as long.
_TIMEOUT = 24 * 3600.0


class StreamError(StateError):
    template = "disk {index}: {reason}"


def export_disk(target: Target, output: int, size_fd: int | None) -> None:
    """Write the disk to `output`, and its number of bytes to `size_fd` for Ganeti's progress."""
    if size_fd is not None:
        with contextlib.suppress(OSError):  # only progress depends on it
            os.write(size_fd, b"%d\n" % size_of(target))
    if target.place.kind is Kind.NBD:
        _nbdcopy([uri_of(target.place), "-"], output=output)
        return
    os.lseek(target.fd, 0, os.SEEK_SET)
    while data := os.read(target.fd, _CHUNK):
        _write(output, data)


def import_disk(target: Target, stream: int) -> None:
    """Write a stream to the disk; one that is larger than the disk is an error, and at once."""
    if target.place.kind is Kind.NBD:
        _nbdcopy(["--flush", "--", "-", uri_of(target.place)], stream=stream)
        return
    left = size_of(target)
    os.lseek(target.fd, 0, os.SEEK_SET)
    while data := os.read(stream, _CHUNK):
        left -= len(data)
        if left < 0:
            raise StreamError(index=target.place.index, reason="the stream is larger than the disk")
        _write(target.fd, data)
    os.fsync(target.fd)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _nbdcopy(words: list[str], *, stream: int | None = None, output: int | None = None) -> None:
    command = [NBDCOPY, *words]
    null = os.open(os.devnull, os.O_RDWR)
    try:
        process = spawn(command, stdin=null if stream is None else stream, stdout=null if output is None else output)
    finally:
        os.close(null)
    try:
        status = process.wait(_TIMEOUT)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if status:
        raise CommandError(
            program=NBDCOPY, reason=reason_of(status), detail="see its message above", command=" ".join(command)
        )

# SPDX-License-Identifier: BSD-2-Clause
"""Writes a judged image to disk 0. No program of the node parses it: raw is bytes, and qcow2 is read by a confined QEMU
that serves its content over NBD (qcow2.py). nbdcopy moves bytes between two places that have no format.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack

from ganeti_plugin import log
from ganeti_plugin.containers import Format
from ganeti_plugin.errors import CommandError, InputError, StateError
from ganeti_plugin.run import quoted, reason_of, run, spawn
from snf_image import qcow2
from snf_image.monitor import Monitor
from snf_image.source import Source
from snf_image.targets import Kind, Target, uri_of

NBDCOPY = "/usr/bin/nbdcopy"

#: Seconds for the whole copy; a source that is slower is refused (threats H22, H23).
COPY_TIMEOUT = 6 * 3600

#: Bytes that one request may fill with zeros (QEMU's limit is just below 2 GiB).
_ZERO_STEP = 1 << 30


class TooLargeError(InputError):
    template = "image {name} describes a disk of {needed} bytes, but disk {index} of the instance has only {size}"
    hint = "give the instance a disk of at least {mebibytes} MiB"


class CopyTimeoutError(StateError):
    template = "copying the image took more than {seconds} seconds"


def size_of(target: Target) -> int:
    """Bytes of a disk; a server is asked. (--size: without it nbdinfo has file(1) look at the content, threat R1.)"""
    if target.size is not None:
        return target.size
    return int(run(["/usr/bin/nbdinfo", "--size", uri_of(target.place)]).stdout)


def deploy(source: Source, target: Target, monitor: Monitor) -> None:
    """Fill the disk with the image, and with zeros behind it. Nothing is written when the image does not fit."""
    size = size_of(target)
    needed = source.verdict.virtual_size
    if needed > size:
        raise TooLargeError(
            name=source.name, needed=needed, index=target.place.index, size=size, mebibytes=-(-needed >> 20)
        )
    log.info("image %s (%s, %d bytes) goes to disk %d", source.name, source.verdict.format, needed, target.place.index)
    with ExitStack() as stack:
        if source.verdict.format is Format.QCOW2:
            served = stack.enter_context(qcow2.served(source, COPY_TIMEOUT))
            _copy(served, target, needed, (), monitor)
        else:
            _copy(f"/proc/self/fd/{source.fd}", target, needed, (source.fd,), monitor)
    source.check_unchanged()
    if target.place.kind is Kind.FILE:
        os.truncate(target.fd, size)
    else:
        _zero(target, needed, size)
    if target.place.kind is not Kind.NBD:
        os.fsync(target.fd)


def _copy(origin: str, target: Target, total: int, fds: tuple[int, ...], monitor: Monitor) -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    destination = uri_of(target.place)
    if target.place.kind is not Kind.NBD:
        destination, fds = f"/proc/self/fd/{target.fd}", (*fds, target.fd)
    command = [NBDCOPY, "--flush", f"--progress={writing}", "--", origin, destination]
    errors, errors_inside = os.pipe2(os.O_CLOEXEC)
    with open(reading, encoding="ascii", errors="replace") as progress, open(errors, "rb") as complaints:
        try:
            process = spawn(command, pass_fds=(*fds, writing), stderr=errors_inside)
        finally:
            os.close(writing)
            os.close(errors_inside)
        try:
            _follow(process, progress.fileno(), total, monitor)
            detail = complaints.read(4096).decode("utf-8", "replace").strip()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        reason = reason_of(process.returncode)
        raise CommandError(program=NBDCOPY, reason=reason, detail=log.escape(detail), command=quoted(command))
    monitor.copied(total, total, is_last=True)


def _follow(process: subprocess.Popen[bytes], progress: int, total: int, monitor: Monitor) -> None:
    """Pass on nbdcopy's lines "N/100" until it ends, or raise at the deadline."""
    import select

    deadline = time.monotonic() + COPY_TIMEOUT
    rest = b""
    while time.monotonic() < deadline:
        if not select.select([progress], [], [], 1.0)[0]:
            continue
        data = os.read(progress, 4096)
        if not data:
            process.wait(60)
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            done = line.partition(b"/")[0].strip()
            if done.isdigit():
                monitor.copied(total * int(done) // 100, total)
    raise CopyTimeoutError(seconds=COPY_TIMEOUT)


def _zero(target: Target, start: int, end: int) -> None:
    """What lies behind the image reads as zero, whatever the storage held before (threat H44)."""
    if start >= end:
        return
    if target.place.kind is Kind.NBD:
        layer: dict[str, object] = {
            "driver": "nbd",
            "server": {"type": "unix", "path": target.place.path},
            "export": target.place.export,
        }
    else:
        layer = {"driver": "host_device", "filename": f"/dev/fd/{target.fd}"}
    node = "json:" + json.dumps({"driver": "raw", "discard": "unmap", "file": {**layer, "discard": "unmap"}})
    steps = [f"write -q -z -u {at} {min(_ZERO_STEP, end - at)}" for at in range(start, end, _ZERO_STEP)]
    words = [word for step in steps for word in ("-c", step)]
    fds = () if target.place.kind is Kind.NBD else (target.fd,)
    run(["/usr/bin/qemu-io", "-d", "unmap", *words, "-c", "flush", node], timeout=COPY_TIMEOUT, pass_fds=fds)

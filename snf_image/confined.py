# SPDX-License-Identifier: BSD-2-Clause
"""Starts a program in a sandbox with descriptors of ours, and ends it on every way out."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ganeti_plugin import log
from ganeti_plugin.errors import CommandError
from ganeti_plugin.run import run, spawn
from snf_image import sandbox
from snf_image.sandbox import Sandbox

#: Seconds for a program to end once its leash is let go.
_END_TIMEOUT = 15.0

#: Bytes of the program's complaints that are kept.
_COMPLAINT_LIMIT = 4096


@dataclass(frozen=True, kw_only=True)
class Confined:
    """A confined program. `output` is where its stdout and stderr can be read, without waiting."""

    popen: subprocess.Popen[bytes]
    output: int

    def complaint(self) -> str:
        """What it has printed by now, as one line; empty when nothing."""
        try:
            data = os.read(self.output, _COMPLAINT_LIMIT)
        except BlockingIOError:
            return ""
        return log.escape(data.decode("utf-8", "replace").strip())


@contextmanager
def confined(cage: Sandbox, command: Sequence[str], fds: Sequence[int]) -> Iterator[Confined]:
    """The program with copies of the descriptors (`%fdN%` in its command). Killed at the end if it still runs."""
    with ExitStack() as stack:
        control, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        stack.enter_context(control)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, reading)
        os.set_blocking(reading, False)
        try:
            popen = spawn(sandbox.command(cage), stdin=inside.fileno(), stdout=writing, stderr=writing)
        finally:
            os.close(writing)
            inside.close()
        stack.callback(_end, popen, control, cage)
        with contextlib.suppress(BrokenPipeError):  # it ended already: its complaint says why
            socket.send_fds(control, [json.dumps(list(command)).encode()], list(fds))
        yield Confined(popen=popen, output=reading)


def _end(popen: subprocess.Popen[bytes], control: socket.socket, cage: Sandbox) -> None:
    """Let the leash go and wait until the sandbox is empty; use force when it is not in time."""
    control.close()
    try:
        popen.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        if sandbox.is_systemd():
            with contextlib.suppress(CommandError):
                run(["/usr/bin/systemctl", "kill", "--signal=KILL", cage.unit], timeout=10)
        popen.kill()
        popen.wait()

# SPDX-License-Identifier: BSD-2-Clause
"""Runs the helper's own tools (never a program of the image).

os.posix_spawn instead of `subprocess`, whose import alone costs a tenth of a second under TCG.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence

from snf_image.helper.errors import TaskError

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8", "HOME": "/"}

#: Bytes of a tool's output that are kept.
OUTPUT_LIMIT = 65536


def run(command: Sequence[str], *, timeout: float, allowed: Sequence[int] = (0,)) -> tuple[int, str]:
    """Run a tool to its end; its exit code and what it printed. TaskError when it fails or outlives `timeout` (s)."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, writer, 1),
        (os.POSIX_SPAWN_DUP2, writer, 2),
    ]
    pid = os.posix_spawn(command[0], list(command), ENVIRONMENT, file_actions=actions)
    os.close(writer)
    try:
        output, in_time = _collect(reader, time.monotonic() + timeout)
    finally:
        os.close(reader)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = output.decode("utf-8", "replace").strip()
    name = os.path.basename(command[0])
    if not in_time:
        raise TaskError(f"{name} did not end within {timeout:g} seconds")
    if code not in allowed:
        raise TaskError(
            f"{name} failed with exit code {code}: {'; '.join(text.splitlines()[-4:]) or 'no reason given'}"
        )
    return code, text


def _collect(reader: int, deadline: float) -> tuple[bytes, bool]:
    """What arrives until the pipe ends, and whether it ended before the deadline."""
    output = bytearray()
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return bytes(output), False
        data = os.read(reader, 16384)
        if not data:
            return bytes(output), True
        if len(output) < OUTPUT_LIMIT:
            output += data

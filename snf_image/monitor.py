# SPDX-License-Identifier: BSD-2-Clause
"""Progress of a creation, as the original's progress monitor reads it: one JSON object a line (snf-image 0.23.1).

With the setting progress_monitor the lines go to that program's standard input, otherwise to stderr, which Ganeti keeps
in the log of the creation. A monitor that dies or hangs must not end or stop the creation.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from ganeti_plugin import log
from ganeti_plugin.errors import CommandError
from ganeti_plugin.run import spawn

#: Seconds between two reports of the copy's progress.
INTERVAL = 3.0

_END_TIMEOUT = 5.0


class HelperEvent(StrEnum):
    TASK_START = "task-start"
    TASK_END = "task-end"
    WARNING = "warning"
    ERROR = "error"


class Monitor:
    """Where progress goes. `stream` is a pipe's write end, or None for stderr."""

    def __init__(self, stream: int | None = None) -> None:
        self._stream = stream
        self._last = 0.0

    def info(self, *messages: str) -> None:
        self._send("image-info", messages=list(messages))

    def error(self, *messages: str) -> None:
        self._send("image-error", messages=list(messages))

    def copied(self, position: int, total: int, *, is_last: bool = False) -> None:
        """Bytes written so far; passed on every few seconds, and at the end."""
        now = time.monotonic()
        if not is_last and now - self._last < INTERVAL:
            return
        self._last = now
        progress = round(100.0 * position / total, 2) if total else 100.0
        self._send("image-copy-progress", position=position, total=total, progress=progress)

    def helper(self, event: HelperEvent, *, task: str | None = None, message: str | None = None) -> None:
        extra: dict[str, object] = {"task": task} if task is not None else {}
        if message is not None:
            extra["messages"] = [message]
        self._send("image-helper", subtype=str(event), **extra)

    def _send(self, kind: str, **values: object) -> None:
        line = json.dumps({"type": kind, "timestamp": time.time(), **values})
        if self._stream is None:
            log.info("[MONITOR] %s", line)
            return
        try:
            os.write(self._stream, line.encode("ascii") + b"\n")
        except BlockingIOError:
            pass  # it does not read: this line is lost to it, the next may not be
        except OSError:
            log.warning("the progress monitor has gone; progress is shown here from now on")
            self._stream = None


@contextmanager
def monitor(program: str, instance: str) -> Iterator[Monitor]:
    """A monitor for the run: the program of that path, or stderr when it is empty or cannot be started."""
    if not program:
        yield Monitor()
        return
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)
    process: subprocess.Popen[bytes] | None = None
    try:
        process = spawn([program, instance], stdin=reading)
    except (CommandError, OSError) as error:
        log.warning("the progress monitor cannot be started: %s", error)
    os.close(reading)
    try:
        yield Monitor(None if process is None else writing)
    finally:
        os.close(writing)
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_TIMEOUT)
            if process.poll() is None:
                process.kill()
                process.wait()

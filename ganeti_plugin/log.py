# SPDX-License-Identifier: BSD-2-Clause
"""Logging: to syslog (the journal where systemd runs), and to stderr, which Ganeti keeps in its own logs.

Not the standard `logging` package: importing it costs a third of the start of a program that Ganeti runs seven times
for one disk. Control characters are escaped, so that hostile text (a guest's output, a file name) cannot forge lines
(threats L10, V03).
"""

from __future__ import annotations

import os
import sys
import syslog

#: Characters of one message; more is cut.
LIMIT = 8192

_state = {"debug": False, "info": True, "stderr": True, "open": False}


def setup(program: str, *, debug_level: int = 0, to_stderr: bool = True) -> None:
    """Open the log for this process. `debug_level` above 0 also shows debug lines on stderr."""
    syslog.openlog(program, syslog.LOG_PID, syslog.LOG_DAEMON)
    _state.update(debug=debug_level > 0, info=True, stderr=to_stderr, open=True)


def only_warnings() -> None:
    """Keep what goes well off stderr: for commands, which tell people on stdout."""
    _state["info"] = False


def escape(text: str) -> str:
    """`text` as one line of printable characters."""
    if text.isprintable():
        return text[:LIMIT]
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:LIMIT])
    return "".join(shown)


def _emit(priority: int, word: str, message: str, on_stderr: bool) -> None:
    line = escape(message)
    if _state["open"] and os.path.exists("/dev/log"):
        syslog.syslog(priority, line)
    if on_stderr and _state["stderr"]:
        print(f"{word}: {line}" if word else line, file=sys.stderr, flush=True)


def debug(message: str, *values: object) -> None:
    if _state["debug"]:
        _emit(syslog.LOG_DEBUG, "debug", message % values if values else message, True)


def info(message: str, *values: object) -> None:
    _emit(syslog.LOG_INFO, "", message % values if values else message, _state["info"])


def warning(message: str, *values: object) -> None:
    _emit(syslog.LOG_WARNING, "warning", message % values if values else message, True)


def note(message: str, *values: object) -> None:
    """A warning for the log alone: whoever sees stderr is told on stdout."""
    _emit(syslog.LOG_WARNING, "", message % values if values else message, False)


def error(message: str, *values: object) -> None:
    _emit(syslog.LOG_ERR, "error", message % values if values else message, True)


def traceback(text: str) -> None:
    """A traceback: for the log only, line by line; on stderr when debugging."""
    for line in text.splitlines():
        _emit(syslog.LOG_ERR, "debug", line, _state["debug"])

# SPDX-License-Identifier: BSD-2-Clause
"""The outer wall: every executable of the suite runs inside `guarded`.

An error of ours becomes one sentence, the last line on stderr, and its class's exit status. So does an error of the
system (a full disk, a file that is not there), with its traceback in the log. Anything else is a defect: its traceback
goes to the log, and the user is told where to look. SIGTERM ends the program as Ctrl-C does, so that what it started
is cleaned up on the way out.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ganeti_plugin import log
from ganeti_plugin.errors import Error

#: Exit status of a defect of ours (EX_SOFTWARE of sysexits.h).
DEFECT = 70

#: Exit status after a signal, as a shell has it: 128 + its number.
SIGNALLED = 128


#: What interrupts a program, and the seconds that it may take to end before somebody wonders.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 1.0


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived."""


def guarded(program: str, main: Callable[[], int | None]) -> int:
    """Run `main` and return the exit status of the process. Nothing below this calls sys.exit()."""
    _have_streams()
    log.setup(program, debug_level=_debug_level())
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except Error as error:
        log.error("%s: %s", program, error)
        return error.exit_status
    except KeyboardInterrupt as interruption:
        number = interruption.args[0] if isinstance(interruption, Interrupted) else signal.SIGINT
        log.error("%s: interrupted by %s", program, signal.Signals(number).name)
        return SIGNALLED + int(number)
    except BrokenPipeError:
        forget_output()  # its reader went away ("| head")
        return 0
    except OSError as error:
        _log_traceback()
        log.error("%s: %s%s", program, f"{error.filename}: " if error.filename else "", error.strerror or error)
        forget_output()
        return Error.exit_status
    except Exception as error:
        _log_traceback()
        kind = type(error).__name__
        log.error(
            "%s: internal error (%s: %s); the traceback is in the system log, please report it", program, kind, error
        )
        return DEFECT


def end_at_the_second_signal(program: str) -> None:
    """For commands that people interrupt, and whose work may die at any moment.

    A signal is seen by Python once a library returns, and librados waits for up to a minute for a cluster that is away.
    So after a second, who pressed Ctrl-C is told that doing so again ends the process as it is, which it then does.
    """
    import threading

    hearing, telling = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(telling, False)
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    threading.Thread(target=_await_signals, args=(program, hearing), name="signals", daemon=True).start()


def _await_signals(program: str, hearing: int) -> None:
    import select

    _await_signal(hearing)
    if not select.select([hearing], [], [], _PATIENCE)[0]:
        print("waiting for what is under way to end; a second signal does not wait", file=sys.stderr, flush=True)
    number = _await_signal(hearing)
    log.error("%s: interrupted by %s", program, signal.Signals(number).name)
    os._exit(SIGNALLED + number)


def _await_signal(hearing: int) -> int:
    """The next one that ends a program; the interpreter writes the number of each that it handles."""
    while (number := os.read(hearing, 1)[0]) not in _ENDING:
        pass
    return number


def _have_streams() -> None:
    """What a caller has closed is no reason to end, nor for writing messages into the next file that is opened."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def forget_output() -> None:
    """Write what is left, or else forget it: the interpreter would try again at exit, complain, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end(status: int) -> NoReturn:
    """End the process now. Taking the interpreter and its libraries apart would cost a clone in RADOS 10 ms of 60.

    For programs that leave nothing to threads and to what is done at an exit.
    """
    forget_output()
    os._exit(status)


def is_completing() -> bool:
    """Whether a shell asks (by argcomplete) what the word under the cursor may become."""
    return "_ARGCOMPLETE" in os.environ


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(number)


def _log_traceback() -> None:
    import traceback

    log.traceback(traceback.format_exc())


def _debug_level() -> int:
    """DEBUG_LEVEL is Ganeti's (OS interface); SNF_GANETI_DEBUG is ours, for everything else."""
    for name in ("DEBUG_LEVEL", "SNF_GANETI_DEBUG"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return 0

# SPDX-License-Identifier: BSD-2-Clause
"""The one place that starts programs.

Every child gets a closed stdin (unless bytes are given), a small explicit environment, and a deadline. The command
is logged, quoted for a shell, before it starts, so that a failure can be repeated by hand. Secrets travel through
`stdin` or inherited descriptors, never through arguments.

What starts programs is imported with the first of them: most of Ganeti's calls end without any.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ganeti_plugin.errors import CommandError
from ganeti_plugin.log import debug

if TYPE_CHECKING:
    import subprocess

#: subprocess.DEVNULL
DEVNULL = -3

#: What every child sees. Ganeti's node daemon passes its whole environment on (noded's PATH, HOME, ...); children of
#: ours must not depend on it.
ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"}

#: Seconds; long work names its own deadline.
TIMEOUT = 60.0

#: Characters of a failed program's stderr that are quoted to the user: its end, where the reason stands.
DETAIL_LIMIT = 400

Argument = str | Path


def quoted(command: Sequence[Argument]) -> str:
    """The command as a line that can be pasted into a shell."""
    return shlex.join(str(argument) for argument in command)


def reason_of(returncode: int) -> str:
    """Why a process ended: a signal's name or an exit code, in words."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def _detail(stderr: bytes | None) -> str:
    text = (stderr or b"").decode("utf-8", "replace").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines)[-DETAIL_LIMIT:] or "it printed no reason"


def run(
    command: Sequence[Argument],
    *,
    stdin: bytes | None = None,
    timeout: float = TIMEOUT,
    env: Mapping[str, str] | None = None,
    allowed: Sequence[int] = (0,),
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return what it printed (stdout, stderr as bytes).

    `timeout` is in seconds; `allowed` lists the exit codes that are not failures; `env` is added to `ENVIRONMENT`.

    Raises CommandError when the program is missing, exits otherwise, is killed, or outlives its deadline.
    """
    import subprocess

    arguments = [str(argument) for argument in command]
    debug("run: %s", quoted(arguments))
    try:
        done = subprocess.run(
            arguments,
            input=stdin,
            stdin=DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            env={**ENVIRONMENT, **(env or {})},
            pass_fds=tuple(pass_fds),
            cwd=cwd,
            check=False,
        )
    except OSError as error:
        raise _not_started(arguments, error) from None
    except subprocess.TimeoutExpired as error:
        raise _failure(arguments, f"no end after {timeout:g} s", _detail(error.stderr)) from None
    if done.returncode not in allowed:
        raise _failure(arguments, reason_of(done.returncode), _detail(done.stderr))
    return done


def spawn(
    command: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    stderr: int | None = None,
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program that goes on beside the caller, who owns the process and must end it."""
    import subprocess

    arguments = [str(argument) for argument in command]
    debug("spawn: %s", quoted(arguments))
    try:
        return subprocess.Popen(
            arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**ENVIRONMENT, **(env or {})},
            pass_fds=tuple(pass_fds),
            start_new_session=new_session,
        )
    except OSError as error:
        raise _not_started(arguments, error) from None


def _not_started(command: Sequence[str], error: OSError) -> CommandError:
    if isinstance(error, FileNotFoundError) and error.filename == command[0]:
        return _failure(command, "not found", "the program is not installed")
    return _failure(command, "it cannot be started", str(error))


def _failure(command: Sequence[str], reason: str, detail: str) -> CommandError:
    return CommandError(program=command[0], reason=reason, detail=detail, command=quoted(command))

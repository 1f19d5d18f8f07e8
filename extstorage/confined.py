# SPDX-License-Identifier: BSD-2-Clause
"""Programs that read bytes nobody vouches for: another user, no privileges, limits, and an end with ours.

What they read and write are descriptors and sockets that they are handed; files of the node they see as nobody does.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

from ganeti_plugin.errors import CommandError
from ganeti_plugin.run import quoted

NOBODY = 65534

#: Seconds that a program which we start has until its socket is there, and to end.
_START = 30.0
_STOP = 30.0

#: Limits: address space; and time, of which a second more is granted for so many bytes. bzip2, the slowest of all,
#: makes 13 MiB of random bytes, 35 of programs, in a second of an EPYC core; xz 136 of these. 100 Mbit/s bring 12.
_ADDRESS_SPACE = 4 << 30
_HOUR = 3600
_BYTES_A_SECOND = 4 << 20

#: Puts a program where nothing is but this machine. unshare(1) waits for its child with SIGTERM blocked; killed, it
#: takes the child along.
_ALONE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child")


def seconds(size: int, at_least: int = _HOUR) -> int:
    """Time enough for that many bytes; of the processor, for what is confined."""
    return at_least + size // _BYTES_A_SECOND


def confined(size: int) -> tuple[str, ...]:
    """Begins the command of a program without network that reads or makes at most `size` bytes."""
    return *_ALONE, *confined_online(size)


def confined_online(size: int) -> tuple[str, ...]:
    """The same for a program that needs the network."""
    return (
        *("setpriv", "--pdeathsig", "KILL", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
        *("prlimit", f"--as={_ADDRESS_SPACE}", f"--cpu={seconds(size)}", "--core=0", "--fsize=0"),
    )


def await_start(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            arguments = [os.fsdecode(argument) for argument in _arguments(process)]
            raise CommandError(
                program=arguments[0],
                reason="it did not come up",
                detail=f"exit code {process.poll()}",
                command=quoted(arguments),
            )
        time.sleep(0.02)


def _arguments(process: subprocess.Popen[bytes]) -> list[str]:
    arguments = process.args
    return [str(argument) for argument in arguments] if isinstance(arguments, list) else [str(arguments)]


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()

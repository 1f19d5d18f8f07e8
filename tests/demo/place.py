# SPDX-License-Identifier: BSD-2-Clause
"""The demonstration's view of the testbed: commands in a node and outside of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ganeti_plugin.errors import Error, StateError
from ganeti_plugin.run import run

ROOT = Path(__file__).resolve().parents[2]
TESTBED = ROOT / "tests/testbed/testbed"


class PatienceError(StateError):
    template = "no {what} within {seconds:g} s; last seen: {last}"


def testbed(*arguments: str) -> None:
    """Run a subcommand of the testbed with its progress on our terminal."""
    show(TESTBED, *arguments)


def show(*command: str | Path) -> None:
    """Run a program whose output belongs on the user's terminal."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, check=False, cwd=ROOT)
    if done.returncode:
        raise StateError(message=f"'{' '.join(str(word) for word in command)}' ended with {done.returncode}, see above")


def in_node(*command: str, node: str = "node1", timeout: float = 600) -> str:
    """Run a program in a node; its stdout, stripped."""
    return _exec(node, command, timeout)


def outside(*command: str, timeout: float = 60) -> str:
    """Run a program where the router and the Internet are; its stdout, stripped."""
    return _exec("outside", command, timeout)


def _exec(place: str, command: tuple[str, ...], timeout: float) -> str:
    return run([TESTBED, "exec", place, *command], timeout=timeout).stdout.decode("utf-8", "replace").strip()


def eventually(what: str, check: Callable[[], str], *, seconds: float, pause: float = 1.0) -> str:
    """Repeat `check` until it does not raise; PatienceError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check()
        except Error as error:
            if time.monotonic() > deadline:
                raise PatienceError(what=what, seconds=seconds, last=str(error)) from error
        time.sleep(pause)

# SPDX-License-Identifier: BSD-2-Clause
"""The testbed as those who drive it from the host see it: commands in a node and outside, and patience."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ganeti_plugin.errors import Error, StateError

ROOT = Path(__file__).resolve().parents[1]
TESTBED = ROOT / "tests/testbed/testbed"

Found = TypeVar("Found")


class FailedError(StateError):
    template = "'{command}' {end}: {said}"


class PatienceError(StateError):
    template = "no {what} within {seconds:g} s; last seen: {last}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """All that the user saw."""
        return f"{self.stdout}\n{self.stderr}"


def host(
    *command: str | Path,
    timeout: float = 600,
    env: dict[str, str] | None = None,
    stdin: str = "",
    slot: str | None = None,
) -> Outcome:
    """Run a program of the host; a failure is for the caller to judge. `slot` names another testbed than ours."""
    words = [str(word) for word in command]
    if slot is not None:
        env = {**(env or os.environ), "SNF_TESTBED_SLOT": slot}
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout, env=env, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(command=" ".join(words), end=f"did not end in {timeout:g} s", said=error.stdout) from None
    return Outcome(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


def tried(
    *command: str, place: str = "node1", timeout: float = 600, stdin: str = "", slot: str | None = None
) -> Outcome:
    """Run a program in a node or outside."""
    return host(TESTBED, "exec", place, *command, timeout=timeout, stdin=stdin, slot=slot)


def done(*command: str, place: str = "node1", timeout: float = 600, stdin: str = "", slot: str | None = None) -> str:
    """The same, for commands that must succeed; their stdout, stripped."""
    outcome = tried(*command, place=place, timeout=timeout, stdin=stdin, slot=slot)
    if outcome.status:
        end = f"ended with {outcome.status}"
        raise FailedError(command=" ".join(command), end=end, said=outcome.said.strip())
    return outcome.stdout.strip()


def is_fit(*nodes: str) -> bool:
    """Whether a testbed with these nodes and Ceph is up."""
    outcome = host(TESTBED, "status", "--json")
    up = {row["node"] for row in json.loads(outcome.stdout)["nodes"]} if outcome.status == 0 else set()
    return up.issuperset(nodes) and tried("test", "-e", "/etc/ceph/ceph.conf").status == 0


def eventually(what: str, check: Callable[[], Found], *, seconds: float, pause: float = 0.5) -> Found:
    """Repeat `check` until it answers with something, and no error of ours; PatienceError after `seconds`."""
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            if found := check():
                return found
        except Error as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise PatienceError(what=what, seconds=seconds, last=last or "nothing")
        time.sleep(pause)

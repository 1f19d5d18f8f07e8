# SPDX-License-Identifier: BSD-2-Clause
"""The hook files that Ganeti finds in /etc, started as Ganeti starts them, with the installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from ganeti_plugin.errors import CommandError
from ganeti_plugin.run import run
from hooks.dispatch import REACTIONS
from tests.unit.ganeti_plugin.contract.test_hook import STOP

HOOKS = Path("/etc/ganeti/hooks")
NAME = "50-snf-ganeti"


def start(file: Path, **variables: str) -> str:
    """Ganeti resets the environment to its own variables; standard input is empty."""
    words = [f"{name}={value}" for name, value in variables.items()]
    done = run(["/usr/bin/env", "-i", *words, file], timeout=30)
    return (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(("path", "phase"), REACTIONS)
def test_each_hook_succeeds_and_says_nothing(path: str, phase: str) -> None:
    file = HOOKS / f"{path}-{phase}.d" / NAME
    assert start(file, **{**STOP, "GANETI_HOOKS_PATH": path, "GANETI_HOOKS_PHASE": phase}) == ""


def test_the_watchers_hook_succeeds_and_says_nothing() -> None:
    assert start(HOOKS / "watcher" / NAME, PATH=STOP["PATH"]) == ""


def test_a_missing_variable_is_named_on_the_last_line() -> None:
    file = HOOKS / "instance-stop-post.d" / NAME
    with pytest.raises(CommandError, match="environment variable GANETI_OP_CODE is missing"):
        start(file, **{name: value for name, value in STOP.items() if name != "GANETI_OP_CODE"})

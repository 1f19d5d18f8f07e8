# SPDX-License-Identifier: BSD-2-Clause
"""Which events cause which reactions, and that the installed hook files match."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from ganeti_plugin.errors import MissingVariableError
from hooks import dispatch
from tests.unit.ganeti_plugin.contract.test_hook import STOP

INSTALLED = Path(__file__).parents[3] / "debian/conffiles/ganeti/hooks"


@pytest.fixture(name="reaped")
def _reaped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network_scripts.cleanup that only counts."""
    calls: list[str] = []
    fake = ModuleType("network_scripts.cleanup")
    fake.reap = lambda: calls.append("reap")  # type: ignore[attr-defined]
    package = ModuleType("network_scripts")
    package.cleanup = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "network_scripts", package)
    monkeypatch.setitem(sys.modules, "network_scripts.cleanup", fake)
    return calls


def call(monkeypatch: pytest.MonkeyPatch, **changes: str) -> int:
    for name, value in {**STOP, **changes}.items():
        monkeypatch.setenv(name, value)
    return dispatch.main([])


@pytest.mark.parametrize("operation", ["stop", "remove", "failover", "migrate", "reboot", "modify"])
def test_an_instance_that_stops_or_moves_is_cleaned_up_after(
    monkeypatch: pytest.MonkeyPatch, reaped: list[str], operation: str
) -> None:
    assert call(monkeypatch, GANETI_HOOKS_PATH=f"instance-{operation}") == 0
    assert reaped == ["reap"]


@pytest.mark.parametrize(("path", "phase"), [("instance-add", "post"), ("instance-stop", "pre")])
def test_other_events_cause_nothing(monkeypatch: pytest.MonkeyPatch, reaped: list[str], path: str, phase: str) -> None:
    assert call(monkeypatch, GANETI_HOOKS_PATH=path, GANETI_HOOKS_PHASE=phase) == 0
    assert reaped == []


def test_the_watcher_needs_no_environment(monkeypatch: pytest.MonkeyPatch, reaped: list[str]) -> None:
    for name in STOP:
        monkeypatch.delenv(name, raising=False)
    assert dispatch.main(["watcher"]) == 0
    assert reaped == ["reap"]


def test_without_environment_the_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STOP:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingVariableError, match="GANETI_HOOKS_VERSION"):
        dispatch.main([])


def test_every_reaction_has_its_hook_file_and_no_file_is_without_reaction() -> None:
    directories = {path.parent.name for path in INSTALLED.glob("*/50-snf-ganeti")}
    assert directories == {f"{path}-{phase}.d" for path, phase in dispatch.REACTIONS} | {"watcher"}


def test_hook_files_are_such_that_ganeti_runs_them() -> None:
    files = list(INSTALLED.glob("*/*"))
    assert files
    for path in files:
        assert path.stat().st_mode & 0o111, path
        assert all(c.isalnum() or c in "_-" for c in path.name), path

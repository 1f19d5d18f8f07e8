# SPDX-License-Identifier: BSD-2-Clause
"""Which events cause which reactions, and that the installed hook files match."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from extstorage import apply, guests
from extstorage.space import Usage
from extstorage.store import Space
from ganeti_plugin import config
from ganeti_plugin.errors import MissingVariableError
from ganeti_plugin.settings import Archipelago
from hooks import dispatch
from hooks.store_check import StoresError
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


def test_a_grown_disk_is_shown_to_its_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[object, ...]] = []
    monkeypatch.setattr(guests, "show_size", lambda _site, *what: shown.append(what))
    disks = {
        "GANETI_INSTANCE_DISK_COUNT": "2",
        "GANETI_INSTANCE_DISK0_UUID": "0b0c0d0e-0000-4000-8000-000000000000",
        "GANETI_INSTANCE_DISK0_PROVIDER": "vlmc",
        "GANETI_INSTANCE_DISK0_ID": "x.ext.disk0",
        "GANETI_INSTANCE_DISK1_UUID": "1b0c0d0e-0000-4000-8000-000000000000",
        "GANETI_INSTANCE_DISK1_PROVIDER": "zfs",
        "GANETI_INSTANCE_DISK1_ID": "x.ext.disk1",
    }
    assert call(monkeypatch, GANETI_HOOKS_PATH="disk-grow", **disks) == 0
    assert shown == [("web1.example.org", "0b0c0d0e-0000-4000-8000-000000000000", "x.ext.disk0")]


def test_a_disk_that_cannot_be_shown_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []

    def show(_site: object, *what: object) -> None:
        shown.append(what[-1])
        if len(shown) == 1:
            raise guests.MonitorError(instance="web1", reason="its monitor fell silent")

    monkeypatch.setattr(guests, "show_size", show)
    disks = {"GANETI_INSTANCE_DISK_COUNT": "2"}
    for number in range(2):
        disks |= {
            f"GANETI_INSTANCE_DISK{number}_UUID": f"{number}b0c0d0e-0000-4000-8000-000000000000",
            f"GANETI_INSTANCE_DISK{number}_PROVIDER": "archipelago",
            f"GANETI_INSTANCE_DISK{number}_ID": f"x.ext.disk{number}",
        }
    with pytest.raises(guests.MonitorError):
        call(monkeypatch, GANETI_HOOKS_PATH="disk-grow", **disks)
    assert shown == ["x.ext.disk0", "x.ext.disk1"]


def test_verification_names_every_store_that_needs_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    full, half = Space(1000 << 20, 49 << 20), Space(1000 << 20, 200 << 20)
    found = [Usage("a", full), Usage("b", half), Usage("c", Space(10, 9)), Usage("d", None, "it is away")]
    monkeypatch.setattr(apply, "usages", lambda _site: found)
    settings = SimpleNamespace(archipelago=Archipelago())
    monkeypatch.setattr(config, "load", lambda: settings)
    environment = {name: value for name, value in STOP.items() if "INSTANCE_" not in name}
    for name, value in {**environment, "GANETI_HOOKS_PATH": "cluster-verify"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoresError) as caught:
        dispatch.main([])
    assert str(caught.value) == (
        "the store 'a' is 96 % full (49 MiB left), so nothing new is made in it; "
        "the store 'b' is 80 % full (200 MiB left); the store 'd' can't be used: it is away"
    )
    found[:] = [Usage("c", Space(10, 9))]
    assert dispatch.main([]) == 0
    site = apply.site()._replace(stores={"c": "rados:pool", "e": "rados:pool"}, default_store="c")
    monkeypatch.setattr(apply, "site", lambda: site)
    with pytest.raises(StoresError, match="the stores c and e of the configuration are one place"):
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

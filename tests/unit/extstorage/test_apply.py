# SPDX-License-Identifier: BSD-2-Clause
"""What is done on a node whose servers die at the wrong moment."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from extstorage import apply, attached, catalog, control, servers
from extstorage.files_store import create_store, open_store
from extstorage.modes import Mode
from extstorage.names import BLOCK, PAGE
from extstorage.plan import SnapshotPlan
from extstorage.servers import Site
from extstorage.session import Session

A = memoryview(b"a" * PAGE)


@pytest.mark.parametrize("mode", [Mode.EXCLUSIVE, Mode.SHARED])
def test_a_dead_server_that_is_closed_does_not_come_back_as_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """The source of a migration dies, Ganeti closes it, systemd starts it again: the target has the volume."""
    stores = {"main": f"files:{tmp_path}/store"}
    site = Site(stores, "main", getpass.getuser(), run=tmp_path / "run", devices=tmp_path / "devices")
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    run = servers.prepare_directory(site, "vol", "main")
    dead = Session(store, "vol", run)
    dead.open(True)
    dead.open(mode is Mode.EXCLUSIVE)
    dead.write(A, 0)
    assert dead._lock is not None
    dead._lock.release()
    monkeypatch.setattr(attached, "_COMES_BACK", 0)
    apply.close_volume(site, "vol")
    again = Session(store, "vol", run)
    again.resume()
    assert again.mode is Mode.CLOSED
    target = Session(open_store(tmp_path / "store"), "vol")
    target.open(True)
    buffer = bytearray(PAGE)
    target.readinto(memoryview(buffer), 0)
    assert buffer == A


def test_a_snapshot_that_is_repeated_while_the_server_still_takes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script that asked for it was killed. A server answers one call after the other, so the repetition waits."""
    site = Site({"main": f"files:{tmp_path}/store"}, "main", getpass.getuser(), run=tmp_path / "run")
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    session.open(True)
    under_way = ["snap"]

    def call(_directory: Path, _name: str, command: str, **arguments: object) -> dict[str, object]:
        if under_way:
            session.snapshot(under_way.pop())
        if command == "snapshot":
            session.snapshot(str(arguments["name"]))
        return {}

    monkeypatch.setattr(servers, "is_running", lambda _site, _name: True)
    monkeypatch.setattr(control, "call", call)
    monkeypatch.setattr(apply, "remove", lambda _site, name, _store: catalog.remove(store, name))
    apply.snapshot(site, SnapshotPlan("vol", "snap", replace=True))
    session.shutdown()
    assert sorted(store.names()) == ["snap", "vol"]

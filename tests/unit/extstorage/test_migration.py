# SPDX-License-Identifier: BSD-2-Clause
"""Live migration: both sides share the volume, and the lock goes to who does I/O. In the order of Ganeti's calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from extstorage import session as session_module
from extstorage.errors import (
    HeldError,
)
from extstorage.names import BLOCK, PAGE
from extstorage.session import Session
from extstorage.store import Store
from tests.unit.extstorage.sessions import A, B, die, read


def test_live_migration_moves_the_lock_with_the_first_write(store: Store) -> None:
    source, target = Session(store, "vol"), Session(store, "vol")
    source.open(True)
    source.write(A, 0)
    target.close()
    source.open(False)
    target.open(False)
    source.write(A, PAGE)
    ended = threading.Event()

    def serve() -> None:
        deadline = time.monotonic() + 20
        while not ended.is_set() and time.monotonic() < deadline:
            source.poll()
            time.sleep(0.005)

    helper = threading.Thread(target=serve)
    helper.start()
    target.write(B, BLOCK)
    ended.set()
    helper.join()
    assert read(target) + read(target, PAGE) == bytes(A) * 2
    source.close()
    target.open(True)
    assert read(target, BLOCK) == bytes(B)
    with pytest.raises(HeldError):
        source.open(True)


class Clock:
    """Time that passes only while somebody sleeps, and what happens meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
        self.now = 0.0
        self._meanwhile = meanwhile
        monkeypatch.setattr(session_module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._meanwhile()


def migrating(store: Store, tmp_path: Path) -> tuple[Session, Session]:
    """Both sides of a migration, of which the source has acknowledged what it has not flushed."""
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    source, target = Session(store, "vol", tmp_path / "source"), Session(store, "vol", tmp_path / "target")
    source.open(True)
    source.open(False)
    target.open(False)
    source.write(A, 0)
    return source, target


def test_what_a_dying_source_acknowledged_is_not_passed_over(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest asks on the other side before systemd has started the source's server again."""
    source, target = migrating(store, tmp_path)
    die(source)
    successors: list[Session] = []

    def meanwhile() -> None:
        if clock.now > 1 and not successors:
            successors.append(Session(store, "vol", tmp_path / "source"))
            successors[0].resume()
        for successor in successors:
            successor.poll()

    clock = Clock(monkeypatch, meanwhile)
    assert read(target) == bytes(A)
    target.write(B, PAGE)
    assert target.holds_lock


def test_a_source_that_stays_away_is_not_waited_for_long(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = migrating(store, tmp_path)
    source.flush()
    died = 20.0
    monkeypatch.setattr(store, "patience", 0.0)

    def meanwhile() -> None:
        if clock.now > died and not ends:
            ends.append(clock.now)
            die(source)

    ends: list[float] = []
    clock = Clock(monkeypatch, meanwhile)
    target.write(B, PAGE)
    waited = clock.now - ends[0]
    assert read(target) + read(target, PAGE) == bytes(A) + bytes(B)
    assert waited < (1 if store.atomic_pages else session_module.RETURN_TIMEOUT + 1)
    assert store.atomic_pages or waited > session_module.RETURN_TIMEOUT - 1


def test_a_source_that_yielded_is_not_waited_for(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = migrating(store, tmp_path)
    clock = Clock(monkeypatch, source.poll)
    assert read(target) == bytes(A)
    assert clock.now == pytest.approx(session_module.YIELD_POLL)
    target.close()
    source.write(B, 0)
    source.close()
    target.open(False)
    assert read(target) == bytes(B)
    assert clock.now == pytest.approx(session_module.YIELD_POLL)


def test_a_failed_migration_gives_the_volume_back(store: Store) -> None:
    source, target = Session(store, "vol"), Session(store, "vol")
    source.open(True)
    source.open(False)
    target.open(False)
    target.close()
    source.open(True)
    source.write(A, 0)
    assert source.holds_lock


def test_a_flush_after_a_restart_in_a_migration(store: Store, tmp_path: Path) -> None:
    """The source's server dies after a write; its successor is asked for nothing but the last flush."""
    run = tmp_path / "run"
    run.mkdir()
    dead = Session(store, "vol", run)
    dead.open(True)
    dead.open(False)
    dead.write(A, 0)
    die(dead)
    source = Session(store, "vol", run)
    source.resume()
    source.flush()
    source.close()
    target = Session(store, "vol")
    target.open(True)
    assert read(target) == bytes(A)

# SPDX-License-Identifier: BSD-2-Clause
"""flock(2) on a volume's file: whose lock it is when volumes come and go, and when a file server forgets it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from extstorage import catalog
from extstorage.errors import (
    FencedError,
    HeldError,
    NoSuchVolumeError,
)
from extstorage.files_store import create_store, open_store
from extstorage.names import BLOCK, PAGE
from extstorage.session import Session
from tests.unit.extstorage.sessions import A, B, read


def test_a_lock_is_that_of_the_volume_which_has_the_name_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, the volume is removed, and another one gets its name."""
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    flock = fcntl.flock
    events: list[Callable[[], object]] = [
        lambda: catalog.create_volume(store, "vol", BLOCK),
        lambda: catalog.remove(store, "vol"),
    ]

    def later(descriptor: int, kind: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith("vol/lock"):
            work, events[:] = events[:], []
            while work:
                work.pop()()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", later)
    lock = store.lock_volume("vol")
    assert not events
    with pytest.raises(HeldError):
        store.lock_volume("vol")
    lock.release()
    events.append(lambda: catalog.remove(store, "vol"))
    with pytest.raises(NoSuchVolumeError):
        store.lock_volume("vol")


def test_one_who_only_asks_who_has_the_lock_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment they have it; a detach in that moment would take what a dead server left for void."""
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    asking = store.lock_volume("vol")
    monkeypatch.setattr(time, "sleep", lambda _seconds: asking.release())
    session = Session(store, "vol")
    session.open(True)
    assert session.holds_lock


def test_a_file_server_that_forgets_locks_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the holder is what tells the old one; its lock it still believes to have."""
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", 3 * BLOCK)
    old = Session(store, "vol")
    old.write(A, 0)
    old.flush()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: None)
        new = Session(open_store(tmp_path / "store"), "vol")
        new.open(True)
    with pytest.raises(FencedError):
        old.flush()
    with pytest.raises(FencedError):
        old.write(B, 0)
    old.shutdown()
    new.write(B, PAGE)
    new.flush()
    assert read(new) + read(new, PAGE) == bytes(A) + bytes(B)


def test_who_was_taken_over_changes_no_marks_of_the_new_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush writes bitmaps, each whole: with those of the old writer, the new one's pages would be lost."""
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    old = Session(store, "vol")
    old.open(True)
    old.write(A, 0)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: None)
        new = Session(open_store(tmp_path / "store"), "vol")
        new.open(True)
    new.write(B, PAGE)
    new.flush()
    with pytest.raises(FencedError):
        old.flush()
    old.shutdown()
    with pytest.raises(FencedError):
        old.flush()
    new.shutdown()
    assert read(Session(open_store(tmp_path / "store"), "vol"), PAGE) == bytes(B)

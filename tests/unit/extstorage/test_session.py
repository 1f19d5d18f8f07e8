# SPDX-License-Identifier: BSD-2-Clause
"""One writer: who is refused, who waits, and what is seen after the lock has moved. In the order of Ganeti's calls."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from extstorage import catalog
from extstorage.errors import (
    FencedError,
    HeldError,
    NotOpenError,
)
from extstorage.file_locks import FileLock
from extstorage.files_store import create_store
from extstorage.modes import Mode
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.session import Session
from extstorage.store import Holder, Store
from tests.datapath.memory_store import MemoryStore
from tests.unit.extstorage.sessions import A, B, die, read


def test_the_second_writer_is_refused_and_told_who_writes(store: Store) -> None:
    first, second = Session(store, "vol"), Session(store, "vol")
    first.open(True)
    with pytest.raises(HeldError, match="node "):
        second.open(True)
    with pytest.raises(HeldError):
        second.write(A, 0)
    first.write(A, 0)
    first.close()
    second.open(True)
    assert read(second) == bytes(A)


def test_the_first_write_takes_the_lock(store: Store) -> None:
    first = Session(store, "vol")
    first.write(A, 0)
    assert first.mode is Mode.EXCLUSIVE
    with pytest.raises(HeldError):
        Session(store, "vol").write(B, 0)


def test_after_close_nothing_is_written(store: Store) -> None:
    session = Session(store, "vol")
    session.open(True)
    session.close()
    session.close()
    with pytest.raises(NotOpenError):
        session.write(A, 0)
    session.open(True)
    session.write(A, 0)


def test_close_where_it_was_never_open_disturbs_nobody(store: Store) -> None:
    source, target = Session(store, "vol"), Session(store, "vol")
    source.open(True)
    target.close()
    source.write(A, 0)
    source.flush()
    assert read(target) == bytes(A)


def test_a_server_that_was_taken_over_stops(store: Store) -> None:
    old = Session(store, "vol")
    old.open(True)
    old.write(A, 0)
    if isinstance(store, MemoryStore):
        store.drop_locks()
    else:
        lock = old._lock
        assert lock is not None
        # The lock is lost but the process lives on, as after a partition.
        (Path(store.title) / "maps" / "vol" / "lock").rename(Path(store.title) / "maps" / "vol" / "old")
    new = Session(store, "vol")
    new.open(True)
    if isinstance(store, MemoryStore):
        with pytest.raises(FencedError):
            old.flush()
        with pytest.raises(FencedError):
            old.write(A, 0)


def test_a_restarted_server_goes_on_in_its_mode(store: Store, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    session = Session(store, "vol", run)
    session.open(True)
    session.shutdown()
    again = Session(store, "vol", run)
    again.resume()
    assert again.mode is Mode.EXCLUSIVE
    assert again.holds_lock


def test_marks_do_not_outlive_another_holder(store: Store, tmp_path: Path) -> None:
    """A server dies with unflushed marks, another node takes over and snapshots: the old marks must not come back."""
    run = tmp_path / "run"
    run.mkdir()
    dead = Session(store, "vol", run)
    dead.open(True)
    dead.write(A, 0)
    die(dead)
    elsewhere = Session(store, "vol")
    elsewhere.open(True)
    expected = bytes(A) if store.atomic_pages else bytes(PAGE)
    assert read(elsewhere) == expected
    elsewhere.shutdown()
    back = Session(store, "vol", run)
    back.open(True)
    assert read(back) == expected


def test_a_restarted_server_sees_what_its_predecessor_acknowledged(store: Store, tmp_path: Path) -> None:
    """Even if that died between its first write and the note of the mode that this brought."""
    run = tmp_path / "run"
    run.mkdir()
    dead = Session(store, "vol", run)
    dead.write(A, 0)
    die(dead)
    (run / "mode").unlink()
    again = Session(store, "vol", run)
    again.resume()
    assert read(again) == bytes(A)


def test_a_restarted_server_does_not_hide_that_it_lacks_the_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error on the way to the marks must not end in reading without them."""
    run = tmp_path / "run"
    run.mkdir()
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    dead = Session(store, "vol", run)
    dead.open(True)
    dead.write(A, 0)
    die(dead)
    again = Session(store, "vol", run)

    def fails(_self: FileLock, _holder: Holder) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "record", fails)
        with pytest.raises(OSError, match="no space"):
            again.resume()


def test_a_restarted_server_waits_for_one_who_has_the_lock_for_a_moment(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 'archipelago volume holder' and a snapshot of a volume without a server do."""
    run = tmp_path / "run"
    run.mkdir()
    dead = Session(store, "vol", run)
    dead.open(True)
    die(dead)
    other = store.lock_volume("vol")
    monkeypatch.setattr(time, "sleep", lambda _seconds: other.release())
    again = Session(store, "vol", run)
    again.resume()
    assert again.mode is Mode.EXCLUSIVE
    assert again.holds_lock


@pytest.mark.parametrize("offset", [BLOCK + 3 * PAGE, BLOCK + 2 * PAGE, 2 * BLOCK, 7 * BLOCK + PAGE])
def test_nothing_is_written_beyond_the_end(store: Store, offset: int) -> None:
    """The export of a block device has the largest size there is, so that the server itself must look."""
    catalog.create_volume(store, "odd", BLOCK + 2 * PAGE + SECTOR)
    session = Session(store, "odd")
    session.write(B[:SECTOR], BLOCK + 2 * PAGE)
    with pytest.raises(OSError, match="beyond its end"):
        session.write(A, offset)
    with pytest.raises(OSError, match="beyond its end"):
        session.zero(offset, PAGE)
    with pytest.raises(OSError, match="beyond its end"):
        session.discard(offset, PAGE)
    session.grow(8 * BLOCK)
    assert read(session, BLOCK + 2 * PAGE) == bytes(B[:SECTOR]).ljust(PAGE, b"\0")
    assert read(session, offset // PAGE * PAGE + PAGE) == bytes(PAGE)


def test_who_was_taken_over_in_doubt_reads_what_the_new_writer_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which map counts is no question of theirs any more, and they must not rely on having the volume."""
    old = Session(store, "vol")
    old.open(True)
    old.write(A, 0)

    def fails(*_arguments: object) -> None:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "write_map", fails)
        with pytest.raises(OSError, match="bad disk"):
            old.grow(4 * BLOCK)
    monkeypatch.setattr(old, "_lock_is_lost", lambda: True)
    old.open(False)
    monkeypatch.undo()
    old.close()
    read(old)
    new = Session(store, "vol")
    new.open(True)
    new.write(B, PAGE)
    new.flush()
    assert read(old, PAGE) == bytes(B)


@pytest.mark.parametrize("atomic", [False, True])
def test_a_close_that_fails_half_way_forgets_no_page(monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    store = MemoryStore(atomic=atomic)
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    session.write(A, 0)

    def broken(_store: MemoryStore, _name: str) -> object:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "map_version", broken)
        with pytest.raises(OSError, match="bad disk"):
            session.close()
    session.write(B, PAGE)
    session.write(B, 2 * PAGE)
    session.close()
    assert read(Session(store, "vol"), 0, 3 * PAGE) == bytes(A) + bytes(B) * 2

# SPDX-License-Identifier: BSD-2-Clause
"""Taking a snapshot of a volume that is in use: what is in it, how long requests wait, and what a failure leaves."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from extstorage import catalog, files_store, gc
from extstorage import session as session_module
from extstorage.errors import (
    AlreadyThereError,
    HeldError,
    ReadOnlyError,
)
from extstorage.files_store import FilesStore, create_store, open_store
from extstorage.freezing import Freezing
from extstorage.hashing import hash_snapshot
from extstorage.maps import DEPTH, VolumeMap
from extstorage.names import BLOCK, PAGE
from extstorage.progress import untold
from extstorage.run_pages import RunPages
from extstorage.session import Session
from extstorage.store import Info, Store, VolumeLock
from tests.datapath.memory_store import MemoryLayer, MemoryStore
from tests.unit.extstorage.sessions import A, B, die, read


def test_a_snapshot_is_read_only_and_can_not_be_removed_while_attached(store: Store) -> None:
    session = Session(store, "vol")
    session.open(True)
    session.write(A, 0)
    session.snapshot("snap", Info(created=0.0))
    with pytest.raises(AlreadyThereError):
        session.snapshot("snap", Info(created=0.0))
    reader = Session(store, "snap")
    reader.open(True)
    with pytest.raises(ReadOnlyError):
        reader.write(A, 0)
    with pytest.raises(HeldError):
        catalog.remove(store, "snap")
    reader.shutdown()
    catalog.remove(store, "snap")
    assert read(session) == bytes(A)


@pytest.mark.parametrize("when", ["map", "marks"])
@pytest.mark.parametrize("change", ["snapshot", "grow"])
def test_a_change_of_the_map_that_half_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, change: str
) -> None:
    """The store has the new map, and the server hears of an error: it must not go on where nobody looks."""
    run = tmp_path / "run"
    run.mkdir()
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", 3 * BLOCK)
    session = Session(store, "vol", run)
    session.open(True)
    session.write(A, 0)
    write_map = FilesStore.write_map

    def fails(*arguments: object) -> None:
        if when == "map":
            write_map(*arguments)  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        if when == "map":
            patch.setattr(FilesStore, "write_map", fails)
        else:
            patch.setattr(RunPages, "__init__", fails)
        with pytest.raises(OSError, match="no space"):
            session.snapshot("snap", Info(created=0.0)) if change == "snapshot" else session.grow(4 * BLOCK)
    session.write(B, BLOCK)
    session.write(A, 2 * BLOCK)
    session.flush()
    session.shutdown()
    again = Session(open_store(tmp_path / "store"), "vol")
    assert [read(again, index * BLOCK) for index in range(3)] == [bytes(A), bytes(B), bytes(A)]


class Disk:
    """A layer whose flush takes as long as it has pages to write, and a guest that goes on writing meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, goes_on: int) -> None:
        self.now = 0.0
        self.held: list[int] = []
        self._goes_on = goes_on
        self._unsynced = self.written = 0
        monkeypatch.setattr(session_module, "time", self)
        monkeypatch.setattr(MemoryLayer, "sync", lambda _: self._sync())
        self.store = MemoryStore()
        catalog.create_volume(self.store, "vol", 8 * BLOCK)
        self.session = Session(self.store, "vol")

    def monotonic(self) -> float:
        return self.now

    def write(self, pages: int) -> None:
        for page in range(self.written, self.written + pages):
            self.session.write(A, page * PAGE)
        self.written += pages
        self._unsynced += pages

    def _sync(self) -> None:
        pages, self._unsynced = self._unsynced, 0
        self.now += pages * 0.01
        if self.session._gate._held:
            self.held.append(pages)
        else:
            self.write(pages // self._goes_on)


@pytest.mark.parametrize("goes_on", [2, 4, 64])
def test_requests_wait_for_a_short_flush_only(monkeypatch: pytest.MonkeyPatch, goes_on: int) -> None:
    disk = Disk(monkeypatch, goes_on)
    disk.write(512)
    disk.session.snapshot("snap", Info(created=0.0))
    assert sum(disk.held) * 0.01 <= session_module.SHORT_ROUND


def test_there_is_no_round_more_than_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """5.12 s, then 0.51 s: what comes up in that time takes a tenth of it."""
    disk = Disk(monkeypatch, goes_on=10)
    disk.write(512)
    disk.session.snapshot("snap", Info(created=0.0))
    assert disk.now == pytest.approx((512 + 51 + 5) * 0.01)


def test_a_guest_that_writes_as_fast_as_the_disk_does_not_keep_off_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, goes_on=1)
    disk.write(512)
    disk.session.snapshot("snap", Info(created=0.0))
    assert disk.held == [512]
    snapshot = Session(disk.store, "snap")
    assert all(read(snapshot, page * PAGE) == bytes(A) for page in range(disk.written))


@pytest.mark.parametrize("rounds", [0, 1, 8])
def test_what_is_written_just_before_requests_wait_is_in_the_snapshot(
    store: Store, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    session = Session(store, "vol")
    session.write(A, 0)
    update, begin, ran = Freezing.update, Freezing.__init__, []

    def begin_late(freezing: Freezing, volume_map: VolumeMap, owned: Mapping[int, int]) -> None:
        begin(freezing, volume_map, owned)
        session.write(B, 2 * BLOCK)

    def late(freezing: Freezing, owned: Mapping[int, int]) -> tuple[VolumeMap, bytes]:
        found = update(freezing, owned)
        if not session._gate._held:
            ran.append(owned)
            session.write(B, 2 * BLOCK)
        return found

    monkeypatch.setattr(Freezing, "__init__", begin_late)
    monkeypatch.setattr(Freezing, "update", late)
    monkeypatch.setattr(session_module, "SHORT_ROUND", -1.0)
    monkeypatch.setattr(session_module, "ROUNDS", rounds)
    session.snapshot("snap", Info(created=0.0))
    assert len(ran) == rounds
    snapshot = Session(store, "snap")
    for found in (session, snapshot):
        assert [read(found, index * BLOCK) for index in range(3)] == [bytes(A), bytes(PAGE), bytes(B)]


def test_a_snapshot_keeps_the_properties_of_its_volume(store: Store) -> None:
    store.write_info("vol", Info(created=1.0, properties={"OSFAMILY": "linux"}))
    before = time.time()
    Session(store, "vol").snapshot("snap")
    found = store.read_info("snap")
    assert (found.origin, found.properties) == ("vol", {"OSFAMILY": "linux"})
    assert before <= found.created <= time.time()


def test_a_snapshot_after_a_death_in_the_middle_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block has an object and no pages yet: the layers below are still what counts."""
    store = MemoryStore(atomic=True)
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    for number in range(DEPTH):
        session.write(A, number * PAGE)
        session.snapshot(f"s{number}", Info(created=0.0))
    write = MemoryLayer.write

    def dies(layer: MemoryLayer, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        if pages is not None:
            raise SystemExit
        write(layer, index, offset, data, pages)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryLayer, "write", dies)
        with pytest.raises(SystemExit):
            session.write(B, BLOCK - PAGE)
    store.drop_locks()
    again = Session(store, "vol")
    again.open(True)
    again.snapshot("after", Info(created=0.0))
    assert [read(again, number * PAGE) for number in range(DEPTH + 1)] == [bytes(A)] * DEPTH + [bytes(PAGE)]
    assert read(Session(store, "after")) == bytes(A)
    again.write(B, 0)
    again.snapshot("later", Info(created=0.0))
    assert read(Session(store, "later")) + read(Session(store, "later"), PAGE) == bytes(B) + bytes(A)


@pytest.mark.parametrize("dies", [True, False])
def test_a_map_that_was_not_durable_is_made_so_before_it_is_used(
    dies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and a power loss would bring the old one back, which does not know the new epoch's writes."""
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    session.write(A, 0)
    write_map = FilesStore.write_map
    durable: list[Path] = []

    def fails_late(*arguments: Any) -> None:
        write_map(*arguments)
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(FilesStore, "write_map", fails_late)
        with pytest.raises(OSError, match="bad disk"):
            session.snapshot("snap", Info(created=0.0))
    monkeypatch.setattr(files_store, "fsync_directory", durable.append)
    if dies:
        die(session)
        session = Session(store, "vol")
    session.write(B, PAGE)
    assert durable[0] == tmp_path / "store" / "maps" / "vol"
    assert read(session, PAGE) == bytes(B)
    session.shutdown()


def test_a_snapshot_is_read_as_it_is_once_nobody_can_change_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its map and its lock it is hashed, and what it named before is collected."""
    writer = Session(store, "vol")
    writer.write(A, 0)
    writer.snapshot("snap", Info(created=0.0))
    writer.write(B, BLOCK)
    writer.snapshot("other", Info(created=0.0))
    writer.shutdown()
    lock_volume = store.lock_volume
    pending: list[Callable[[], object]] = [
        lambda: gc.collect(store),
        lambda: catalog.remove(store, "vol"),
        lambda: catalog.remove(store, "other"),
        lambda: hash_snapshot(store, "snap", untold),
    ]

    def later(name: str, *, shared: bool = False, patience: float = 0.0) -> VolumeLock:
        if shared:
            while pending:
                pending.pop()()
        return lock_volume(name, shared=shared, patience=patience)

    monkeypatch.setattr(store, "lock_volume", later)
    session = Session(store, "snap")
    assert not pending
    assert read(session) == bytes(A)

# SPDX-License-Identifier: BSD-2-Clause
"""One writer: who is refused, who waits, and what is seen after the lock has moved. In the order of Ganeti's calls."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from extstorage import catalog, files_store, fsck, gc
from extstorage import session as session_module
from extstorage.errors import (
    AlreadyThereError,
    DoubtfulError,
    FencedError,
    HeldError,
    NoSuchVolumeError,
    NotAnOriginError,
    NotOpenError,
    ReadOnlyError,
    SmallerThanOriginError,
    UnknownOriginError,
)
from extstorage.file_layers import FileLayer
from extstorage.file_locks import FileLock
from extstorage.files_store import FilesStore, create_store, open_store
from extstorage.freezing import Freezing
from extstorage.hashing import hash_snapshot
from extstorage.maps import DEPTH, Source, VolumeMap
from extstorage.memory_store import MemoryLayer, MemoryStore
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.run_pages import RunPages
from extstorage.session import Mode, Session
from extstorage.store import Holder, Info, Layer, Store, VolumeLock
from ganeti_plugin.errors import StateError

A = memoryview(b"a" * PAGE)
B = memoryview(b"b" * PAGE)


@pytest.fixture(params=["files", "memory", "atomic"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    memory = MemoryStore(atomic=request.param == "atomic")
    found: Store = create_store(tmp_path / "store") if request.param == "files" else memory
    catalog.create_volume(found, "vol", 3 * BLOCK)
    return found


def read(session: Session, offset: int = 0, length: int = PAGE) -> bytes:
    buffer = bytearray(length)
    session.readinto(memoryview(buffer), offset)
    return bytes(buffer)


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


def die(session: Session) -> None:
    """As after kill -9: only the lock goes."""
    assert session._lock is not None
    session._lock.release()


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
    assert dead._lock is not None
    dead._lock.release()
    elsewhere = Session(store, "vol")
    elsewhere.open(True)
    expected = bytes(A) if store.atomic_pages else bytes(PAGE)
    assert read(elsewhere) == expected
    elsewhere.shutdown()
    back = Session(store, "vol", run)
    back.open(True)
    assert read(back) == expected


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


def test_requests_wait_for_a_short_flush_only(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, goes_on=4)
    disk.write(512)
    disk.session.snapshot("snap", Info(created=0.0))
    assert sum(disk.held) * 0.01 <= session_module.SHORT_ROUND


def test_a_guest_that_writes_as_fast_as_the_disk_does_not_keep_off_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, goes_on=1)
    disk.write(512)
    disk.session.snapshot("snap", Info(created=0.0))
    assert disk.held == [512]
    snapshot = Session(disk.store, "snap")
    assert all(read(snapshot, page * PAGE) == bytes(A) for page in range(disk.written))


def test_what_is_written_just_before_requests_wait_is_in_the_snapshot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(store, "vol")
    session.write(A, 0)
    update = Freezing.update

    def late(freezing: Freezing, owned: Mapping[int, int]) -> tuple[VolumeMap, bytes]:
        found = update(freezing, owned)
        if not session._gate._held:
            session.write(B, 2 * BLOCK)
        return found

    monkeypatch.setattr(Freezing, "update", late)
    session.snapshot("snap", Info(created=0.0))
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


def test_origins_are_judged(store: Store) -> None:
    with pytest.raises(UnknownOriginError):
        catalog.create_volume(store, "clone", BLOCK, origin="nothing")
    with pytest.raises(NotAnOriginError):
        catalog.create_volume(store, "clone", 3 * BLOCK, origin="vol")
    Session(store, "vol").snapshot("snap", Info(created=0.0))
    with pytest.raises(SmallerThanOriginError, match="12 MiB"):
        catalog.create_volume(store, "clone", BLOCK, origin="snap")
    assert store.names() == ["snap", "vol"]


def test_create_may_be_repeated_but_not_changed(store: Store) -> None:
    catalog.create_volume(store, "vol", 3 * BLOCK)
    with pytest.raises(AlreadyThereError):
        catalog.create_volume(store, "vol", 4 * BLOCK)


def test_a_detached_volume_is_found_by_its_disk_name(store: Store) -> None:
    catalog.create_volume(store, "old", BLOCK, cname="snf-vol-7")
    session = Session(store, "old")
    session.write(A, 0)
    session.shutdown()
    assert catalog.of_disk_name(store, "snf-vol-7") == ["old"]
    assert catalog.of_disk_name(store, "snf-vol-8") == []
    with pytest.raises(AlreadyThereError):
        catalog.adopt(store, "old", "new", 2 * BLOCK)
    catalog.adopt(store, "old", "new", BLOCK)
    assert read(Session(store, "new")) == bytes(A)
    assert "old" not in store.names()


def test_a_clone_of_100_gib_costs_a_map(store: Store) -> None:
    catalog.create_volume(store, "big", 100 << 30)
    Session(store, "big").snapshot("image", Info(created=0.0, image=True))
    began = time.monotonic()
    catalog.create_volume(store, "clone", 100 << 30, origin="image")
    assert time.monotonic() - began < 0.3


def test_a_broken_map_is_listed_and_can_be_removed(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    catalog.create_volume(store, "sound", BLOCK)
    session = Session(store, "sound")
    session.write(A, 0)
    session.shutdown()
    (tmp_path / "store/maps/vol/map").write_bytes(b"nonsense" * 20)
    assert [item.kind for item in catalog.items(store)] == ["volume", "broken"]
    catalog.remove(store, "vol")
    assert [item.kind for item in catalog.items(store)] == ["volume"]


@pytest.mark.parametrize("content", ["", "{}", '{"kind": "snf-archipelago", "version": 99}', "[1]"])
def test_a_foreign_directory_is_no_store(tmp_path: Path, content: str) -> None:
    with pytest.raises(StateError):
        open_store(tmp_path)
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(StateError):
        create_store(tmp_path)
    (tmp_path / "store.json").unlink()
    (tmp_path / "precious").touch()
    with pytest.raises(StateError, match="precious"):
        create_store(tmp_path)
    assert isinstance(create_store(tmp_path / "new"), FilesStore)


def test_a_full_store_is_an_error_until_there_is_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    session.write(A, 0)

    def full(_layer: MemoryLayer, _pages: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryLayer, "save_pages", full)
        with pytest.raises(OSError, match="no space"):
            session.flush()
    session.flush()
    store.die(random.Random(1))
    assert read(Session(store, "vol")) == bytes(A)


def test_a_failed_sync_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    session.write(A, 0)

    def broken(_layer: MemoryLayer) -> None:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryLayer, "sync", broken)
        with pytest.raises(OSError, match="bad disk"):
            session.flush()
    with pytest.raises(OSError, match="bad disk"):
        session.flush()


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_a_successor_knows_that_a_sync_failed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel told it once, to a process that is dead, and calls the pages clean. A guest must not be told so."""
    store: Store = create_store(tmp_path / "store") if kind == "files" else MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    (tmp_path / "run").mkdir()
    session = Session(store, "vol", tmp_path / "run")
    session.open(True)
    session.write(A, 0)

    def broken(_layer: Layer) -> None:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(FileLayer if kind == "files" else MemoryLayer, "sync", broken)
        with pytest.raises(OSError, match="bad disk"):
            session.flush()
    for _ in range(2):
        die(session)
        session = Session(store, "vol", tmp_path / "run")
        session.resume()
        session.write(B, PAGE)
        assert read(session) + read(session, PAGE) == bytes(A) + bytes(B)
        with pytest.raises(OSError, match="bad disk"):
            session.flush()
        assert "bad disk" in session.loss
    assert not fsck.check(store, repair=True)[0].repaired
    die(session)
    elsewhere = Session(store, "vol")
    with pytest.raises(DoubtfulError, match="may be lost: .*bad disk.*fsck --repair vol"):
        elsewhere.open(True)
    elsewhere.open(False)
    with pytest.raises(DoubtfulError):
        elsewhere.write(A, 0)
    assert "bad disk" in fsck.check(store)[0].text
    assert fsck.check(store, repair=True)[0].repaired
    assert not fsck.check(store)
    elsewhere = Session(store, "vol")
    elsewhere.open(True)
    elsewhere.write(B, 0)
    elsewhere.flush()
    assert read(elsewhere) == bytes(B)
    elsewhere.shutdown()


def test_a_flush_that_can_not_open_the_layer_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor has marks to bring into the store; its first flush fails before anything was written."""
    run = tmp_path / "run"
    run.mkdir()
    store = MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    dead = Session(store, "vol", run)
    dead.open(True)
    dead.write(A, 0)
    store.drop_locks()
    session = Session(store, "vol", run)
    session.open(True)
    layer = MemoryStore.layer

    def fails(of: MemoryStore, source: Source, *, writable: bool = False) -> Layer:
        if writable:
            raise OSError(errno.EMFILE, "too many open files")
        return layer(of, source)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "layer", fails)
        with pytest.raises(OSError, match="too many"):
            session.flush()
    session.flush()
    store.die(random.Random(1))
    assert read(Session(store, "vol")) == bytes(A)


def test_a_flush_after_a_restart_in_a_migration(store: Store, tmp_path: Path) -> None:
    """The source's server dies after a write; its successor is asked for nothing but the last flush."""
    run = tmp_path / "run"
    run.mkdir()
    dead = Session(store, "vol", run)
    dead.open(True)
    dead.open(False)
    dead.write(A, 0)
    assert dead._lock is not None
    dead._lock.release()
    source = Session(store, "vol", run)
    source.resume()
    source.flush()
    source.close()
    target = Session(store, "vol")
    target.open(True)
    assert read(target) == bytes(A)


def test_a_restarted_server_sees_what_its_predecessor_acknowledged(store: Store, tmp_path: Path) -> None:
    """Even if that died between its first write and the note of the mode that this brought."""
    run = tmp_path / "run"
    run.mkdir()
    dead = Session(store, "vol", run)
    dead.write(A, 0)
    assert dead._lock is not None
    dead._lock.release()
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
    assert dead._lock is not None
    dead._lock.release()
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
    assert dead._lock is not None
    dead._lock.release()
    other = store.lock_volume("vol")
    monkeypatch.setattr(time, "sleep", lambda _seconds: other.release())
    again = Session(store, "vol", run)
    again.resume()
    assert again.mode is Mode.EXCLUSIVE
    assert again.holds_lock


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
        lambda: hash_snapshot(store, "snap", lambda _percent: None),
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

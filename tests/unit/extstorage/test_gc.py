# SPDX-License-Identifier: BSD-2-Clause
"""The collection frees what no map names, and nothing else, whatever happened before and happens meanwhile."""

from __future__ import annotations

import hashlib
import os
import random
from array import array
from pathlib import Path

import pytest

from extstorage import catalog, gc, maps
from extstorage.bitmaps import indexes_of
from extstorage.errors import BrokenError, BusyError, HeldError
from extstorage.files_store import FilesStore, create_store
from extstorage.maps import CONTENT, DEPTH, Source
from extstorage.marks import Marks
from extstorage.names import BLOCK, PAGE
from extstorage.scans import scan_of
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.datapath.history import BLOCKS, History, named, read, snapshot, stress, write
from tests.datapath.memory_store import MemoryStore


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return create_store(tmp_path / "store") if request.param == "files" else MemoryStore()


# What is named, against the obvious way to find it.


def any_map(chance: random.Random, blocks: int, most: int) -> maps.VolumeMap:
    sources = tuple(Source(chance.randbytes(16), number) for number in range(chance.choice((1, 3, most))))
    digests = chance.randbytes(32 * chance.randrange(blocks))
    entries = array("I", bytes(4 * DEPTH * blocks))
    for index in range(blocks):
        numbers = [chance.randint(1, len(sources)) for _ in range(chance.randrange(DEPTH + 1))]
        if digests and len(numbers) < DEPTH and chance.random() < 0.5:
            numbers.append(CONTENT | chance.randrange(len(digests) // 32))
        entries[index * DEPTH : index * DEPTH + len(numbers)] = array("I", numbers)
    return maps.VolumeMap(blocks * BLOCK, chance.randbytes(16), 7, chance.random() < 0.5, sources, entries, digests)


@pytest.mark.parametrize(("seed", "most"), [(1, 300), (2, 300), (3, 300), (4, 70_000)])
def test_marks_are_what_maps_name(seed: int, most: int) -> None:
    chance = random.Random(seed)
    added = [any_map(chance, chance.randint(1, 40), most) for _ in range(8)]
    marks = Marks()
    for volume_map in added:
        marks.add(scan_of(maps.encode(volume_map), "x"))
        marks.add(scan_of(maps.encode(volume_map), "x"))
    expected: dict[Source, set[int]] = {}
    for volume_map in added:
        for source, index in named(volume_map):
            expected.setdefault(source, set()).add(index)
    for source, indexes in expected.items():
        if source.is_content:
            assert marks.names_content(source.owner)
            continue
        assert marks.names(source)
        kept = marks.blocks(source)
        assert kept is not None
        assert set(indexes_of(kept)) == indexes
    for volume_map in added:
        assert marks.names(volume_map.current) is not volume_map.read_only
        assert volume_map.read_only or marks.blocks(volume_map.current) is None
    assert not marks.names_content(bytes(32))
    assert not marks.names(Source(bytes(16), 1))


def test_maps_of_many_blocks_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extstorage.scans._PART", 3)
    monkeypatch.setattr("extstorage.marks._LONG", 8)
    test_marks_are_what_maps_name(5, 300)


def test_layers_for_whose_blocks_there_is_no_room_are_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extstorage.marks._ROOM", 200)
    marks = Marks()
    sources = tuple(Source(bytes([number]) * 16, 1) for number in range(20))
    entries = array("I", [number for index in range(20) for number in (index + 1, 0, 0, 0)])
    volume_map = maps.VolumeMap(20 * BLOCK, bytes(16), 2, True, sources, entries)
    marks.add(scan_of(maps.encode(volume_map), "x"))
    found = [marks.blocks(source) for source in sources]
    assert all(marks.names(source) for source in sources)
    assert all(kept in (None, 1 << index) for index, kept in enumerate(found))
    assert None in found
    assert found[0] == 1


# One thing at a time.


def test_a_template_goes_and_its_clones_keep_what_they_need(store: Store) -> None:
    catalog.create_volume(store, "vol", BLOCKS * BLOCK)
    for block in range(BLOCKS):
        write(store, "vol", block, b"1")
    snapshot(store, "vol", "golden")
    catalog.create_volume(store, "clone", BLOCKS * BLOCK, origin="golden")
    session = Session(store, "clone")
    session.write(memoryview(bytes(b"2" * BLOCK)), 0)
    session.shutdown()
    snapshot(store, "clone", "later")  # a whole block of its own hides the template's
    catalog.remove(store, "vol")
    catalog.remove(store, "golden")
    report = gc.collect(store)
    assert (report.layers, report.shrunk, report.maps) == (0, 1, 2)
    assert 0 < report.freed <= 2 * PAGE
    assert [read(store, "clone", block)[:1] for block in range(BLOCKS)] == [b"2", b"1", b"1", b"1"]
    catalog.remove(store, "clone")
    catalog.remove(store, "later")
    again = gc.collect(store)
    assert again.layers == 2
    assert list(store.layers()) == []


def test_the_space_of_a_removed_clone_is_free_at_once(store: Store) -> None:
    catalog.create_volume(store, "vol", BLOCKS * BLOCK)
    write(store, "vol", 0)
    assert catalog.remove(store, "vol") >= PAGE
    assert list(store.layers()) == []


def test_a_second_run_finds_nothing(store: Store) -> None:
    catalog.create_volume(store, "vol", BLOCKS * BLOCK)
    write(store, "vol", 0)
    write(store, "vol", 1)
    snapshot(store, "vol", "one")
    session = Session(store, "vol")
    session.write(memoryview(bytes(BLOCK)), 0)
    session.snapshot("two", Info(created=2.0))
    session.shutdown()
    catalog.remove(store, "one")
    first, second = gc.collect(store), gc.collect(store)
    assert first.freed > 0
    assert first.shrunk == 1
    assert second.freed == 0
    assert second.shrunk == second.layers == 0


def test_a_dry_run_changes_nothing(store: Store) -> None:
    catalog.create_volume(store, "vol", BLOCKS * BLOCK)
    write(store, "vol", 0)
    snapshot(store, "vol", "one")
    catalog.remove(store, "vol")
    catalog.remove(store, "one")
    before = list(store.layers())
    report = gc.collect(store, dry_run=True)
    assert report.dry_run
    assert report.layers == 1
    assert report.freed >= PAGE
    assert list(store.layers()) == before
    assert gc.collect(store).layers == 1


def test_with_an_unreadable_map_nothing_is_freed_and_it_is_said(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCKS * BLOCK)
    write(store, "vol", 0)
    snapshot(store, "vol", "one")
    catalog.remove(store, "one")
    catalog.create_volume(store, "other", BLOCK)
    path = tmp_path / "store/maps/vol/map"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    report = gc.collect(store)
    assert report.freed == 0
    assert len(report.faults) == 1
    assert "maps/vol/map" in report.faults[0]
    path.write_bytes(good)
    assert read(store, "vol", 0) == b"x" * PAGE
    assert gc.collect(store).faults == ()


def test_there_is_one_collection_at_a_time(store: Store) -> None:
    with store.only_one(gc.WORK), pytest.raises(BusyError, match="another gc is running"):
        gc.collect(store)
    gc.collect(store)


def test_what_killed_creations_left_is_removed(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    for name in (".new-vol", ".gone-vol"):
        (tmp_path / "store/maps" / name).mkdir()
        (tmp_path / "store/maps" / name / "map").write_bytes(b"half")
    (tmp_path / "store/content/new/ab.1").write_bytes(b"of a running import")
    assert gc.collect(store, dry_run=True).leftovers == 2
    assert gc.collect(store).leftovers == 2
    assert [path.name for path in (tmp_path / "store/content/new").iterdir()] == ["ab.1"]
    assert list((tmp_path / "store/maps").iterdir()) == []


def test_halves_of_layers_are_removed(tmp_path: Path) -> None:
    """The disk was full when the second file was to be made, or the power went."""
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    data = tmp_path / "store/data"
    for owner in (b"a" * 16, b"b" * 16, b"c" * 16, store.read_map("vol").owner):
        (data / owner.hex()).mkdir()
        if owner != b"c" * 16:
            os.utime(data / owner.hex(), (0, 0))
    (data / (b"b" * 16).hex() / f"{1:016x}.pages").write_bytes(b"")
    assert gc.collect(store, dry_run=True).leftovers == 2
    gc.collect(store)
    # One that is new may be about to get a layer.
    assert [path.name for path in data.iterdir()] == [(b"c" * 16).hex()]
    session = Session(store, "vol")
    session.write(memoryview(b"x"), 0)
    session.shutdown()


# Contents.


def put(store: Store, data: bytes) -> bytes:
    digest = hashlib.sha256(data).digest()
    store.put_content(digest, memoryview(data))
    store.sync_contents()
    return digest


def test_contents_that_no_map_names_go(store: Store) -> None:
    kept, gone = put(store, b"kept"), put(store, b"gone")
    store.create("image", maps.from_digests(2 * BLOCK, bytes(16), [kept, None]), Info(created=1.0, image=True))
    report = gc.collect(store)
    assert report.contents == 1
    assert report.freed > 0
    assert [digest for digest, _ in store.contents()] == [kept]
    assert store.content_used(gone) == 0
    catalog.remove(store, "image")
    assert gc.collect(store).contents == 1


@pytest.mark.parametrize("moment", ["contents", "locked", "remove_content"])
def test_a_content_that_an_import_finds_meanwhile_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The import names it in a map, then touches it; wherever the collection is at that time."""
    digest = put(store, b"found again")
    real = getattr(store, moment)
    done: list[str] = []

    def first_import(*arguments: object) -> object:
        if not done:
            done.append(moment)
            store.create("import-x", maps.from_digests(BLOCK, bytes(16), [digest]), Info(created=1.0))
            assert not store.put_content(digest, memoryview(b"found again"))
        return real(*arguments)

    monkeypatch.setattr(store, moment, first_import)
    gc.collect(store)
    assert done
    assert [found for found, _ in store.contents()] == [digest]


def test_more_garbage_than_fits_into_memory_goes_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "_MOST_SUSPECTS", 3)
    for number in range(8):
        put(store, b"%d" % number)
    assert gc.collect(store).contents == 8
    assert not list(store.contents())


# Histories.


class Killed(BaseException):
    """Like kill -9, at the call that raises it."""


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happened_every_volume_reads_as_the_model(
    store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(store, seed)
    for _ in range(60):
        history.step()
        if history.chance.random() < 0.15:
            with monkeypatch.context() as patched:
                _kill_after(patched, store, history.chance.randrange(8))
                try:
                    gc.collect(store)
                    history.check_nothing_is_left()
                except Killed:
                    pass
            history.check()
    gc.collect(store)
    history.check_nothing_is_left()
    history.check()


def _kill_after(patched: pytest.MonkeyPatch, store: Store, calls: int) -> None:
    """Let the collection die at one of its changes; sometimes it makes fewer than that."""
    left = [calls]

    def counting(name: str) -> None:
        real = getattr(store, name)

        def change(*arguments: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*arguments)

        patched.setattr(store, name, change)

    for name in ("remove_layer", "free_blocks", "remove_content"):
        counting(name)


def test_volumes_in_use_while_collections_run(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    reports = stress(lambda: FilesStore(tmp_path / "store"), seed=20261121, steps=150)
    assert any(report.layers + report.shrunk for report in reports)


def test_a_volume_that_somebody_reads_keeps_its_layers(store: Store) -> None:
    catalog.create_volume(store, "vol", BLOCKS * BLOCK)
    write(store, "vol", 0)
    snapshot(store, "vol", "one")
    reader = Session(store, "one")
    with pytest.raises(HeldError):
        catalog.remove(store, "one")
    catalog.remove(store, "vol")
    gc.collect(store)
    buffer = bytearray(PAGE)
    reader.readinto(memoryview(buffer), 0)
    assert bytes(buffer) == b"x" * PAGE
    reader.shutdown()


def test_a_layer_that_was_freed_is_missing_and_not_empty(store: Store) -> None:
    with pytest.raises(BrokenError):
        store.layer(Source(bytes(16), 1)).readinto(0, 0, memoryview(bytearray(1)))

# SPDX-License-Identifier: BSD-2-Clause
"""What is asked of a store does not grow with it, where only one thing is meant; what is counted is calls, not time."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from extstorage import catalog, fsck, gallery, gc, maps, scrub, stats
from extstorage.errors import HeldError
from extstorage.files_store import create_store
from extstorage.maps import Source
from extstorage.names import BLOCK, PAGE
from extstorage.pages import FULL, PAGES
from extstorage.scans import Reader, Scan
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.datapath.history import snapshot, write
from tests.datapath.memory_store import MemoryStore
from tests.unit.extstorage.told import Told

FEW, MANY = 10, 1000

_MAPS = ("read_map", "scan_map", "read_heads", "read_info", "map_version", "exists", "used", "layer")
_ASKING = (*_MAPS, "names", "possible_names", "versions")


class Counting(MemoryStore):
    """Counts what is asked of it, and what is done while its lock is held."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.asked_locked: Counter[str] = Counter()
        self._is_locked = False

    def __getattribute__(self, name: str) -> Any:
        if name in _ASKING:
            self.asked[name] += 1
            if self._is_locked:
                self.asked_locked[name] += 1
        return super().__getattribute__(name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with super().locked():
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False


def filled(count: int) -> Counting:
    store = Counting()
    catalog.create_volume(store, "vol", BLOCK, cname="disk")
    write(store, "vol", 0)
    snapshot(store, "vol", "golden")
    for number in range(count):
        catalog.create_volume(store, f"clone{number}", BLOCK, origin="golden", cname=f"disk{number}")
    store.asked.clear()
    store.asked_locked.clear()
    return store


def _snapshot(store: Store) -> None:
    session = Session(store, "vol")
    session.snapshot("another", Info(created=1.0))
    session.shutdown()


def _grow(store: Store) -> None:
    session = Session(store, "vol")
    session.grow(2 * BLOCK)
    session.shutdown()


@pytest.mark.parametrize(
    "action",
    [
        lambda store: catalog.create_volume(store, "new", BLOCK, origin="golden"),
        lambda store: catalog.remove(store, "clone1"),
        lambda store: catalog.item(store, "clone1", "volume", "volume"),
        lambda store: catalog.used(store, "clone1"),
        lambda store: catalog.adopt(store, "clone1", "new", BLOCK),
        lambda store: gallery.rename(store, "clone1", "new", "volume"),
        _snapshot,
        _grow,
    ],
)
def test_an_action_on_one_volume_costs_the_same_whatever_else_there_is(action: Callable[[Store], object]) -> None:
    asked = []
    for count in (FEW, MANY):
        store = filled(count)
        action(store)
        asked.append(store.asked)
    assert asked[0] == asked[1]


def test_a_collection_reads_each_map_once_and_none_under_the_lock() -> None:
    store = filled(FEW)
    gc.collect(store)
    assert store.asked["scan_map"] == FEW + 2
    assert store.asked_locked["scan_map"] == 0
    assert store.asked_locked["versions"] == 1


@pytest.mark.parametrize("work", [gc.collect, stats.of_store, fsck.check, lambda store: scrub.scrub(store, _ignore)])
def test_what_clones_have_in_common_is_read_once(
    work: Callable[[Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    real = Scan.read

    def counted(scan: Scan, reader: Reader) -> None:
        read.append(scan.body)
        real(scan, reader)

    monkeypatch.setattr(Scan, "read", counted)
    store = filled(FEW)
    work(store)
    assert len(read) == len(set(read)) == 1


def _ignore(_done: int, _all: int) -> None:
    """Progress."""


def test_a_content_that_many_clones_miss_is_asked_for_once() -> None:
    store = Counting()
    store.create("image", maps.from_digests(BLOCK, bytes(16), [bytes(32)]), Info(created=1.0, image=True))
    for number in range(FEW):
        catalog.create_volume(store, f"clone{number}", BLOCK, origin="image")
    store.asked.clear()
    assert len(fsck.check(store)) == FEW + 1
    assert store.asked["layer"] == 1


def test_a_single_map_of_many_content_blocks_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gc, fsck):
        monkeypatch.setattr(module, "TELLING", 10)
    store = Counting()
    digests = [number.to_bytes(32, "big") for number in range(40)]
    for digest in digests[:20]:
        store.put_content(digest, memoryview(b"x"))
    store.create("image", maps.from_digests(40 * BLOCK, bytes(16), digests), Info(created=1.0, image=True))
    told = Told()
    assert len(fsck.check(store, "image", progress=told)) == 1
    assert told.calls == [(0, ""), (0, ", 40 content blocks")]
    told.calls.clear()
    fsck.check(store, progress=told)
    assert told.calls == [
        *((0, f", {count} content blocks") for count in (10, 20)),
        (0, ""),
        (0, ", 60 content blocks"),
    ]
    told.calls.clear()
    catalog.remove(store, "image")
    assert gc.collect(store, progress=told).contents == 20
    assert (50, ", 10 content blocks") in told.calls
    assert (99, ", 10 content blocks removed") in told.calls


def test_a_check_asks_a_few_things_of_each_name() -> None:
    asked = []
    for count in (FEW, MANY):
        store = filled(count)
        fsck.check(store)
        asked.append(store.asked)
    assert asked[1]["layer"] == asked[0]["layer"]
    per_name = {name: (asked[1][name] - asked[0][name]) / (MANY - FEW) for name in _ASKING}
    # This store reads the whole map for the head.
    assert {name for name, count in per_name.items() if count} == {
        *("scan_map", "read_heads", "read_map", "read_info", "map_version")
    }
    assert set(per_name.values()) == {0, 1}


@pytest.mark.parametrize("has_holes", [True, False])
def test_of_a_sparse_layer_what_is_there_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_holes: bool
) -> None:
    """Also where the file system knows of no holes, but there at its price."""
    last = (1 << 40) // BLOCK - 1
    written = {0: 1, 5: 2, 15: 3, 16: 4, 1023: 5, 1024: 6, 100_000: 7, last: 8}
    layer = create_store(tmp_path / "store").layer(Source(bytes(16), 1), writable=True)
    layer.save_pages(written)
    seek, read, counts = os.lseek, os.pread, []

    def without_holes(descriptor: int, position: int, how: int) -> int:
        return position if how == os.SEEK_DATA else seek(descriptor, 0, os.SEEK_END)

    def counted(descriptor: int, length: int, position: int) -> bytes:
        found = read(descriptor, length, position)
        counts.append(len(found))
        return found

    monkeypatch.setattr(os, "pread", counted)
    if not has_holes:
        monkeypatch.setattr(os, "lseek", without_holes)
    assert list(layer.blocks()) == list(written.items())
    assert not has_holes or sum(counts) <= 8 * PAGE


def test_records_are_written_with_their_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each system call in between would let a busy guest's requests in; and the others' records stay."""
    write, sizes = os.pwrite, []

    def counted(descriptor: int, data: bytes, position: int) -> int:
        count = write(descriptor, data, position)
        sizes.append(count)
        return count

    chance = Random(1)
    layer = create_store(tmp_path / "store").layer(Source(bytes(16), 1), writable=True)
    expected: dict[int, int] = {}
    monkeypatch.setattr(os, "pwrite", counted)
    for density in (1.0, 0.3, 0.01, 0.3):
        pages = {index: 1 + chance.getrandbits(PAGES - 1) for index in range(20_000) if chance.random() < density}
        del sizes[:]
        layer.save_pages(dict(chance.sample(sorted(pages.items()), len(pages))))
        assert len(sizes) < len(pages) if density == 0.01 else len(sizes) < len(pages) / 50
        expected |= pages
        assert dict(layer.blocks()) == expected


def test_no_space_is_taken_between_records_that_are_far_apart(tmp_path: Path) -> None:
    layer = create_store(tmp_path / "store").layer(Source(bytes(16), 1), writable=True)
    indexes = [0, 15, 31, 48, 1000, 1016, 1033]
    layer.save_pages(dict.fromkeys(indexes, 1))
    [path] = tmp_path.glob("store/data/*/*.pages")
    blocks = {index * 256 // PAGE for index in indexes}
    assert path.stat().st_blocks * 512 <= len(blocks) * PAGE
    assert list(layer.blocks()) == [(index, 1) for index in indexes]


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    layer = create_store(tmp_path / "store").layer(Source(bytes(16), 1), writable=True)
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: write(descriptor, bytes(data[:100]), at))
    layer.save_pages(dict.fromkeys(range(40), FULL))
    layer.write(2, 5, memoryview(bytes(range(256))), None)
    found = memoryview(bytearray(258))
    layer.readinto(2, 4, found)
    assert bytes(found) == bytes(1) + bytes(range(256)) + bytes(1)
    assert list(layer.blocks()) == [(index, FULL) for index in range(40)]


@pytest.mark.parametrize("grain", [1, 100, 4096])
def test_no_record_is_cut_wherever_the_holes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grain: int) -> None:
    written = dict.fromkeys(range(3, 40, 4), 1 << 1023)
    layer = create_store(tmp_path / "store").layer(Source(bytes(16), 1), writable=True)
    layer.save_pages(written)
    [path] = tmp_path.glob("store/data/*/*.pages")
    data = path.read_bytes().ljust(grain, b"\0")

    def in_grains(_descriptor: int, position: int, how: int) -> int:
        at = position
        while at < len(data) and (how == os.SEEK_DATA) != any(data[at - at % grain : at - at % grain + grain]):
            at += grain - at % grain
        return at

    monkeypatch.setattr(os, "lseek", in_grains)
    assert list(layer.blocks()) == list(written.items())


def test_the_volumes_of_a_disk_are_found_by_one_question_to_each() -> None:
    """No table of them, which could tell something else than the volumes do."""
    store = filled(FEW)
    assert catalog.of_disk_name(store, "disk3") == ["clone3"]
    assert (store.asked["read_info"], store.asked["read_heads"]) == (FEW + 2, 1)


def test_completion_looks_at_what_begins_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(FEW)
    assert catalog.names_of(store, "volume", "clone3") == ["clone3"]
    assert store.asked["read_heads"] == 1
    assert catalog.names_of(store, "snapshot", "") == ["golden"]
    monkeypatch.setattr(catalog, "_MOST_COMPLETIONS", FEW - 1)
    store.asked.clear()
    assert len(catalog.names_of(store, "snapshot", "")) == FEW + 2
    assert not store.asked["read_heads"]


def test_who_waits_for_a_volume_keeps_nobody_waiting_for_the_store() -> None:
    """A holder that died may be waited for, for a whole lease."""
    store = filled(FEW)
    was_free = []

    def lock_volume(name: str, **_more: object) -> Any:
        thread = threading.Thread(target=lambda: was_free.append(_can_be_locked(store)))
        thread.start()
        thread.join()
        raise HeldError(name=name, holder="somebody")

    store.lock_volume = lock_volume  # type: ignore[method-assign]
    for action in (
        lambda: catalog.remove(store, "clone1"),
        lambda: catalog.adopt(store, "clone1", "new", BLOCK),
        lambda: gallery.rename(store, "clone1", "new", "volume"),
    ):
        with pytest.raises(HeldError):
            action()
    assert was_free == [True, True, True]


def _can_be_locked(store: MemoryStore) -> bool:
    found = store._mutex.acquire(blocking=False)
    if found:
        store._mutex.release()
    return found

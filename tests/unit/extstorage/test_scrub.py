# SPDX-License-Identifier: BSD-2-Clause
"""Scrubbing: a sound store is called sound, and each kind of damage is named with what it hits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from extstorage import catalog, maps
from extstorage.files_store import FilesStore, create_store
from extstorage.maps import Source
from extstorage.names import BLOCK, PAGE
from extstorage.rados_errors import RadosError
from extstorage.scans import Scan
from extstorage.scrub import Report, scrub
from extstorage.session import Session
from extstorage.store import Info, Layer, R, Store


@pytest.fixture
def store(tmp_path: Path) -> FilesStore:
    """Two images that share a block, a block that nothing names, and a volume with a layer and a snapshot."""
    store = create_store(tmp_path / "store")
    names = [put(store, bytes([number]) * (number * PAGE + 1)) for number in (1, 2, 3, 4)]
    for name, digests in (("one", (names[0], None, names[1])), ("two", (names[1], names[2]))):
        store.create(name, maps.from_digests(len(digests) * BLOCK, os.urandom(16), digests), Info(0.0, image=True))
    catalog.create_volume(store, "vol", 3 * BLOCK, origin="one")
    session = Session(store, "vol")
    session.open(True)
    session.write(memoryview(b"x" * PAGE), 0)
    session.snapshot("snap", Info(created=0.0))
    session.shutdown()
    return store


def put(store: Store, data: bytes) -> bytes:
    digest = hashlib.sha256(data).digest()
    store.put_content(digest, memoryview(data))
    store.sync_contents()
    return digest


def done(store: Store, *, repair: bool = False) -> Report:
    said: list[tuple[int, int]] = []
    report = scrub(store, lambda *counts: said.append(counts), repair=repair)
    assert [number for number, _ in said] == list(range(1, report.blocks + 1))
    return report


def content_files(store: FilesStore) -> dict[int, Path]:
    """By the number of which the block consists."""
    return {path.read_bytes()[0]: path for path in Path(store.title, "content").glob("??/??/*")}


def test_a_sound_store(store: FilesStore) -> None:
    report = done(store)
    assert report.damage == ()
    assert (report.maps, report.layers, report.blocks, report.bytes) == (4, 1, 4, 4 * BLOCK)


def test_a_flipped_bit_is_found_and_says_what_it_hits(store: FilesStore) -> None:
    path = content_files(store)[2]
    with path.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\x03")
    (damage,) = done(store).damage
    assert damage.what == f"block {path.name}"
    assert "its bytes have the name" in damage.reason
    assert damage.hits == ("one", "snap", "two", "vol")


def test_what_is_damaged_is_removed_and_comes_back_with_the_next_import(store: FilesStore) -> None:
    path = content_files(store)[2]
    whole = path.read_bytes()
    path.write_bytes(b"\x03" + whole[1:])
    (damage,) = done(store, repair=True).damage
    assert damage.removed
    assert not path.exists()
    (damage,) = done(store).damage
    assert "missing" in damage.reason
    assert damage.hits == ("one", "snap", "two", "vol")
    put(store, whole)
    assert done(store).damage == ()


def test_missing_and_cut_blocks(store: FilesStore) -> None:
    files = content_files(store)
    files[1].unlink()
    os.truncate(files[3], PAGE)
    os.truncate(files[4], 0)
    assert {damage.what: damage.hits for damage in done(store).damage} == {
        f"block {files[1].name}": ("one", "snap", "vol"),
        f"block {files[3].name}": ("two",),
        f"block {files[4].name}": (),
    }


def test_broken_maps_and_layers(store: FilesStore) -> None:
    path = Path(store.title, "maps", "two", "map")
    path.write_bytes(path.read_bytes()[:-1])
    (pages,) = Path(store.title, "data").glob("*/*01.pages")
    pages.write_bytes(b"\xff" + pages.read_bytes()[1:])
    report = done(store)
    assert report.maps == 3
    assert [damage.hits for damage in report.damage if damage.what == "the map of two"] == [("two",)]
    assert [damage.hits for damage in report.damage if damage.what.startswith("layer")] == [("snap", "vol")]
    pages.unlink()
    assert [damage.hits for damage in done(store).damage if damage.what.startswith("layer")] == [("snap", "vol")]


def test_what_comes_and_goes_meanwhile_is_no_damage(store: FilesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    scan_map = FilesStore.scan_map

    def late(self: FilesStore, name: str, look: Callable[[Scan], R]) -> R:
        if store.exists("two"):
            new = put(store, b"new")
            store.create("three", maps.from_digests(BLOCK, bytes(16), [new]), Info(created=0.0))
            store.remove("two")
        return scan_map(self, name, look)

    walk_contents = FilesStore.walk_contents
    listings: list[int] = []

    def gone(self: FilesStore) -> list[tuple[bytes, bool]]:
        found = list(walk_contents(self))
        listings.append(len(found))
        if len(listings) == 2:
            content_files(store)[4].unlink()
        return found

    monkeypatch.setattr(FilesStore, "scan_map", late)
    monkeypatch.setattr(FilesStore, "walk_contents", gone)
    assert done(store).damage == ()
    assert len(listings) == 2


def test_of_very_much_damage_some_is_named_and_the_rest_is_counted(
    store: FilesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extstorage.scrub._MOST_FAULTS", 2)
    for path in content_files(store).values():
        path.write_bytes(b"bad")
    for further in (2, 0):
        *named, last = done(store, repair=True).damage
        if further:
            assert [(one.what.split()[0], one.removed) for one in named] == [("block", True)] * 2
            assert last.what == f"{further} further blocks and layers"
    assert len(content_files(store)) == 0


@pytest.mark.parametrize("moment", ["contents", "remove_content"])
def test_a_block_that_was_made_anew_meanwhile_stays(
    store: FilesStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another repair has removed the bad one, and an import has put it again, whole."""
    path = content_files(store)[2]
    whole = path.read_bytes()
    path.write_bytes(b"\x03" + whole[1:])
    real = getattr(FilesStore, moment)

    def late(self: FilesStore, *arguments: object) -> object:
        calls.append(moment)
        if len(calls) == 1:
            path.unlink()
            put(store, whole)
        return real(self, *arguments)

    calls: list[str] = []
    monkeypatch.setattr(FilesStore, moment, late)
    (damage,) = done(store, repair=True).damage
    assert not damage.removed
    assert path.read_bytes() == whole


def test_a_block_that_was_away_for_a_while_is_no_damage(store: FilesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collected after it was listed, and put again by an import that ends before the scrub does."""
    path = content_files(store)[4]
    whole = path.read_bytes()
    path.unlink()
    real = FilesStore.contents
    monkeypatch.setattr(FilesStore, "contents", lambda self: [*real(self), (bytes.fromhex(path.name), 0)])
    names = FilesStore.names

    def late(self: FilesStore) -> list[str]:
        store.create("three", maps.from_digests(BLOCK, bytes(16), [put(store, whole)]), Info(created=0.0))
        return names(self)

    monkeypatch.setattr(FilesStore, "names", late)
    assert done(store).damage == ()


def test_a_block_that_went_with_its_image_is_no_damage(store: FilesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = content_files(store)[3]
    real = FilesStore.layer

    def gone(self: FilesStore, source: Source, *, writable: bool = False) -> Layer:
        if source.owner.hex() == path.name and path.exists():
            path.unlink()
        return real(self, source, writable=writable)

    scan_map, looks = FilesStore.scan_map, []

    def late(self: FilesStore, name: str, look: Callable[[Scan], R]) -> R:
        looks.append(name)
        found = scan_map(self, name, look)
        if looks.count("two") == 2 and self.exists("two"):
            self.remove("two")
        return found

    monkeypatch.setattr(FilesStore, "layer", gone)
    monkeypatch.setattr(FilesStore, "scan_map", late)
    assert done(store).damage == ()


def test_what_the_store_can_not_read_is_named(store: FilesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In RADOS that is no OSError, and ends no scrub either."""
    path = content_files(store)[3]
    real = FilesStore.layer

    def unreadable(self: FilesStore, source: Source, *, writable: bool = False) -> Layer:
        if source.owner.hex() == path.name:
            raise RadosError(store="rados:pool", key=path.name, reason="EIO")
        return real(self, source, writable=writable)

    monkeypatch.setattr(FilesStore, "layer", unreadable)
    (damage,) = done(store).damage
    assert damage.hits == ("two",)
    assert "EIO" in damage.reason

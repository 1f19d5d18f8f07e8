# SPDX-License-Identifier: BSD-2-Clause
"""The check names what is damaged, block by block, and a repair makes the volume open again or leaves it as it was."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import pytest

from extstorage import catalog, fsck, gc, maps
from extstorage.errors import BrokenError, NoSuchVolumeError
from extstorage.files_store import FilesStore, create_store
from extstorage.maps import DEPTH
from extstorage.names import BLOCK, PAGE
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.datapath.memory_store import MemoryLayer, MemoryStore

BLOCKS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> FilesStore:
    """One volume with a snapshot, and a page in each of three blocks: two of them frozen."""
    store = create_store(folder)
    catalog.create_volume(store, "vol", BLOCKS * BLOCK)
    write(store, "vol", 0, b"0")
    write(store, "vol", 1, b"1")
    snapshot(store, "vol", "snap")
    write(store, "vol", 2, b"2")
    return store


def write(store: Store, volume: str, block: int, byte: bytes) -> None:
    session = Session(store, volume)
    session.write(memoryview(byte * PAGE), block * BLOCK)
    session.shutdown()


def snapshot(store: Store, volume: str, name: str) -> None:
    session = Session(store, volume)
    session.snapshot(name, Info(created=1.0, origin=volume))
    session.shutdown()


def content(store: Store, name: str) -> str:
    """The first byte of each block; "-" for a block that can't be read."""
    session = Session(store, name)
    found = ""
    for block in range(session.size // BLOCK):
        buffer = bytearray(1)
        try:
            session.readinto(memoryview(buffer), block * BLOCK)
            found += buffer.decode("ascii") if buffer[0] else "."
        except BrokenError:
            found += "-"
    session.shutdown()
    return found


def one(found: list[fsck.Finding]) -> fsck.Finding:
    assert len(found) == 1, found
    return found[0]


def layer_file(store: FilesStore, folder: Path, epoch: int, suffix: str) -> Path:
    return folder / "data" / store.read_heads("vol").owner.hex() / f"{epoch:016x}.{suffix}"


def test_a_sound_store_has_nothing(store: FilesStore) -> None:
    catalog.create_volume(store, "clone", BLOCKS * BLOCK, origin="snap")
    assert fsck.check(store) == []
    assert fsck.check(store, "clone", repair=True) == []
    assert content(store, "vol") == "012."


def test_memory_is_checked_as_well() -> None:
    store = MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    write(store, "vol", 0, b"0")
    assert fsck.check(store) == []
    with pytest.raises(NoSuchVolumeError):
        fsck.check(store, "other")


def test_a_torn_map_comes_back_from_the_one_before_a_snapshot(store: FilesStore, folder: Path) -> None:
    path = folder / "maps/vol/map"
    path.write_bytes(path.read_bytes()[:-1])
    found = one(fsck.check(store))
    assert (found.name, found.repaired, found.damage) == ("vol", "", True)
    assert "maps/vol/map" in found.text
    assert "the map before the last change is back" in one(fsck.check(store, "vol", repair=True)).repaired
    assert fsck.check(store) == []
    assert content(store, "vol") == "012."
    assert content(store, "snap") == "01.."
    write(store, "vol", 0, b"x")
    assert content(store, "snap") == "01..", "what is frozen stays as it was"


def test_a_torn_map_comes_back_from_the_one_before_it_grew(store: FilesStore, folder: Path) -> None:
    session = Session(store, "vol")
    session.grow((BLOCKS + 1) * BLOCK)
    session.shutdown()
    (folder / "maps/vol/map").unlink()
    assert f"with {BLOCKS * BLOCK} bytes" in one(fsck.check(store, repair=True)).repaired
    assert content(store, "vol") == "012."


def test_after_a_collection_there_is_no_map_to_go_back_to(store: FilesStore, folder: Path) -> None:
    gc.collect(store)
    (folder / "maps/vol/map").write_bytes(b"torn")
    assert one(fsck.check(store, repair=True)).repaired == ""
    assert gc.collect(store).faults
    assert content(store, "snap") == "01.."


def test_a_map_of_which_two_generations_are_missing_is_not_guessed(store: FilesStore, folder: Path) -> None:
    old = (folder / "maps/vol/map").read_bytes()
    for name in ("s2", "s3"):
        snapshot(store, "vol", name)
        write(store, "vol", 3, b"3")
    (folder / "maps/vol/map").write_bytes(old)
    found = one(fsck.check(store, repair=True))
    assert "its map is older than that of" in found.text
    assert found.repaired == ""


def test_a_map_that_somebody_restored_by_hand_is_brought_up(store: FilesStore, folder: Path) -> None:
    old = (folder / "maps/vol/map").read_bytes()
    snapshot(store, "vol", "later")
    (folder / "maps/vol/map").write_bytes(old)
    assert "its map is older than that of 'later'" in one(fsck.check(store)).text
    assert one(fsck.check(store, repair=True)).repaired
    assert fsck.check(store) == []
    write(store, "vol", 2, b"x")
    assert content(store, "later") == "012."
    assert content(store, "vol") == "01x."


def test_two_volumes_that_write_the_same_layer_are_named(store: FilesStore, folder: Path) -> None:
    shutil.copytree(folder / "maps/vol", folder / "maps/copy")
    found = one(fsck.check(store, repair=True))
    assert "it writes the same layer as 'copy'" in found.text
    assert found.repaired == ""


def test_a_missing_layer_is_told_block_by_block(store: FilesStore, folder: Path) -> None:
    layer_file(store, folder, 1, "data").unlink()
    found = {finding.name: finding for finding in fsck.check(store, repair=True)}
    assert set(found) == {"vol", "snap"}
    assert all(finding.blocks == ((0, 1),) and not finding.repaired for finding in found.values())
    assert content(store, "vol") == "--2."


def test_a_flipped_bit_in_a_bitmap_is_found_and_mended_from_the_data(store: FilesStore, folder: Path) -> None:
    path = layer_file(store, folder, 1, "pages")
    data = bytearray(path.read_bytes())
    data[256] ^= 4
    path.write_bytes(data)
    assert content(store, "vol") == "0-2."
    assert {finding.blocks for finding in fsck.check(store)} == {((1, 1),)}
    assert "made anew from the data" in fsck.check(store, repair=True)[0].repaired
    assert fsck.check(store) == []
    assert content(store, "vol") == "012."


def test_a_volume_with_a_bad_bitmap_of_its_own_opens_again(store: FilesStore, folder: Path) -> None:
    path = layer_file(store, folder, 2, "pages")
    data = bytearray(path.read_bytes())
    data[2 * 256 + 128] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenError):
        write(store, "vol", 3, b"3")
    assert fsck.check(store, repair=True)[0].repaired
    write(store, "vol", 3, b"3")
    assert content(store, "vol") == "0123"


def test_lost_facts_are_made_anew(store: FilesStore, folder: Path) -> None:
    (folder / "maps/vol/info.json").write_bytes(b"{")
    assert "properties are lost" in one(fsck.check(store, repair=True)).repaired
    assert fsck.check(store) == []
    assert content(store, "vol") == "012."


def test_missing_contents_are_told_block_by_block(store: FilesStore) -> None:
    digests = [hashlib.sha256(data).digest() for data in (b"a", b"b")]
    store.create("image", maps.from_digests(3 * BLOCK, bytes(16), [digests[0], digests[1], None]), Info(created=1.0))
    store.put_content(digests[0], memoryview(b"a"))
    store.sync_contents()
    found = one(fsck.check(store, "image", repair=True))
    assert (found.text, found.blocks, found.repaired) == ("1 content blocks are missing", ((1, 1),), "")
    assert content(store, "image") == "a-."


def test_what_interrupted_work_left_is_no_damage(store: FilesStore, folder: Path) -> None:
    (folder / "maps/.new-x").mkdir()
    store.ask_for_lock("vol")
    found = fsck.check(store)
    assert len(found) == 2
    assert not any(finding.damage or finding.repaired for finding in found)
    assert all(finding.repaired for finding in fsck.check(store, repair=True))
    assert fsck.check(store) == []


def test_a_volume_in_use_is_left_alone(store: FilesStore, folder: Path) -> None:
    session = Session(store, "vol")
    session.open(True)
    (folder / "maps/vol/info.json").write_bytes(b"{")
    store.ask_for_lock("vol")
    assert one(fsck.check(store, repair=True)).repaired == ""
    session.write(memoryview(b"x" * PAGE), 0)
    session.shutdown()
    assert content(store, "vol") == "x12."


def test_nothing_seems_wrong_while_volumes_are_used(store: FilesStore, folder: Path) -> None:
    over = threading.Event()
    failures: list[BaseException] = []

    def use() -> None:
        try:
            for number in range(40):
                snapshot(mine, "vol", f"s{number}")
                write(mine, "vol", number % BLOCKS, b"u")
                catalog.create_volume(mine, f"c{number}", BLOCKS * BLOCK, origin=f"s{number}")
                write(mine, f"c{number}", 1, b"c")
                if number:
                    catalog.remove(mine, f"s{number - 1}")
                    catalog.remove(mine, f"c{number - 1}")
        except BaseException as error:
            failures.append(error)
        over.set()

    mine = FilesStore(folder)
    user = threading.Thread(target=use)
    user.start()
    rounds = 0
    found: list[fsck.Finding] = []
    while not over.is_set():
        found += fsck.check(store)
        rounds += 1
    user.join()
    assert not failures
    assert found == []
    assert rounds > 2


def test_a_map_is_brought_up_past_a_copy_that_a_death_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer has the block and none of its pages: what is below counts."""
    store = MemoryStore(atomic=True)
    catalog.create_volume(store, "vol", 2 * BLOCK)
    session = Session(store, "vol")
    for number in range(DEPTH):
        session.write(memoryview(bytes([65 + number]) * PAGE), number * PAGE)
        session.snapshot(f"s{number}", Info(created=0.0))
    real = MemoryLayer.write

    def dies(layer: MemoryLayer, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        if pages is not None:
            raise SystemExit
        real(layer, index, offset, data, pages)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryLayer, "write", dies)
        with pytest.raises(SystemExit):
            session.write(memoryview(b"x" * PAGE), BLOCK - PAGE)
    store.drop_locks()
    again = Session(store, "vol")
    again.write(memoryview(b"y" * PAGE), BLOCK)
    before = store._maps["vol"]
    again.snapshot("after", Info(created=0.0))
    again.shutdown()
    store._maps["vol"] = before
    assert one(fsck.check(store, repair=True)).repaired == "the map was brought to the last snapshot"
    buffer = bytearray(PAGE)
    Session(store, "vol").readinto(memoryview(buffer), 0)
    assert buffer == b"A" * PAGE

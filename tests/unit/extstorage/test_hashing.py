# SPDX-License-Identifier: BSD-2-Clause
"""Hashing a snapshot: it reads as before, shares what is equal, and its clones notice nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from extstorage import catalog, intake
from extstorage.content import Block, digest_of, root_of, root_of_map
from extstorage.errors import AlreadyThereError, BadNameError, HeldError, NoSuchVolumeError
from extstorage.files_store import create_store
from extstorage.hashing import NotHashableError, Unhashed, hash_snapshot
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.progress import untold
from extstorage.session import Session
from extstorage.store import Info, Store
from extstorage.volume import Volume
from tests.datapath.memory_store import MemoryStore

SIZE = 9 * BLOCK + 3 * SECTOR


@pytest.fixture(params=["memory", "files", "atomic"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "files":
        return create_store(tmp_path / "store")
    return MemoryStore(atomic=request.param == "atomic")


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BATCH", 2)
    monkeypatch.setattr(intake, "AHEAD", 1)
    monkeypatch.setattr(intake, "CHECKPOINT", 2 * BLOCK)


def write(session: Session, chance: random.Random, blocks: range) -> None:
    for number in blocks:
        for _ in range(3):
            offset = number * BLOCK + chance.randrange(BLOCK - 9000) // SECTOR * SECTOR
            session.write(memoryview(chance.randbytes(chance.choice((SECTOR, PAGE, 8192)))), offset)


@pytest.fixture
def history(store: Store) -> Store:
    """A volume with three snapshots (layers over layers, holes, zeros, a short last block); a clone of the second."""
    chance = random.Random(3)
    catalog.create_volume(store, "vol", SIZE)
    session = Session(store, "vol")
    session.open(True)
    for number in range(3):
        write(session, chance, range(number, 7 - number))
        session.write(memoryview(b"end"), SIZE - 3)
        session.zero(5 * BLOCK, BLOCK)
        session.snapshot(f"snap{number}", Info(created=0.0, origin="vol"))
    session.shutdown()
    catalog.create_volume(store, "clone", SIZE + BLOCK, origin="snap1")
    return store


def contents(store: Store, name: str) -> bytes:
    session = Session(store, name)
    buffer = bytearray(session.size)
    session.readinto(memoryview(buffer), 0)
    session.shutdown()
    return bytes(buffer)


def name_of(data: bytes) -> bytes:
    return root_of(digest_of(memoryview(data[at : at + BLOCK])) for at in range(0, len(data), BLOCK))


def test_hashed_snapshots_read_as_before(history: Store) -> None:
    before = {name: contents(history, name) for name in history.names()}
    owner = history.read_heads("snap1").owner
    for name in ("snap1", "snap2", "snap0"):
        root = hash_snapshot(history, name, untold)
        assert root == name_of(before[name]) == root_of_map(history.read_map(name))
        new = history.read_map(name)
        assert (new.read_only, new.sources, new.size, new.owner) == (True, (), SIZE, owner)
        assert new.depth(5) == new.depth(8) == 0
        assert hash_snapshot(history, name, untold) == root
    assert {name: contents(history, name) for name in history.names()} == before
    named = {layer.owner for n in range(3) for i in range(10) for layer in history.read_map(f"snap{n}").layers(i)}
    assert {digest for digest, _ in history.contents()} == named


def test_a_clone_of_a_hashed_snapshot_is_written_and_hashed_again(history: Store) -> None:
    hash_snapshot(history, "snap2", untold)
    catalog.create_volume(history, "second", SIZE, origin="snap2")
    session = Session(history, "second")
    session.open(True)
    session.write(memoryview(b"new"), 3 * BLOCK + 7)
    session.snapshot("snap3", Info(created=0.0, origin="second"))
    session.shutdown()
    data = contents(history, "snap3")
    before = {digest for digest, _ in history.contents()}
    assert [block.number for block in _unhashed(history, "snap3")] == [3]
    assert hash_snapshot(history, "snap3", untold) == name_of(data)
    assert contents(history, "snap3") == data
    assert len({digest for digest, _ in history.contents()} - before) == 1


def _unhashed(store: Store, name: str) -> list[Block]:
    return list(Unhashed(store, store.read_map(name)).blocks(0, lambda: memoryview(bytearray(BLOCK))))


class Death(BaseException):
    """Kill -9."""


def test_hashing_goes_on_after_a_death(history: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(history, "snap2")
    read: list[int] = []
    readinto = Volume.readinto

    def dying(self: Volume, buffer: memoryview, offset: int) -> None:
        read.append(offset // BLOCK)
        if read[-1] == dies_at:
            raise Death
        readinto(self, buffer, offset)

    monkeypatch.setattr(Volume, "readinto", dying)
    dies_at = 9
    with pytest.raises(Death):
        hash_snapshot(history, "snap2", untold)
    assert read == [0, 1, 2, 3, 4, 5, 6, 9]
    assert {"hash-snap2", "hash.snap2"} <= {*history.names()}
    read.clear()
    dies_at = 100
    hash_snapshot(history, "snap2", untold)
    assert 0 < read[0] <= 6
    assert read[-1] == 9
    assert not {"hash-snap2", "hash.snap2"} & {*history.names()}
    monkeypatch.undo()
    assert contents(history, "snap2") == before


def test_what_was_hashed_when_death_came_is_tidied(history: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(_name: str) -> None:
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(history, "remove", dying)
        with pytest.raises(Death):
            hash_snapshot(history, "snap2", untold)
    assert {"hash-snap2", "hash.snap2"} <= {*history.names()}
    root = hash_snapshot(history, "snap2", untold)
    assert root == name_of(contents(history, "snap2"))
    assert not {"hash-snap2", "hash.snap2"} & {*history.names()}


def test_what_can_not_be_hashed(history: Store) -> None:
    catalog.create_volume(history, "hash-snap0", BLOCK)
    attached = Session(history, "snap1")
    cases = (
        ("vol", NotHashableError),
        ("snap1", HeldError),
        ("none", NoSuchVolumeError),
        ("snap0", AlreadyThereError),
        ("x" * 70, BadNameError),
    )
    for name, error in cases:
        with pytest.raises(error):
            hash_snapshot(history, name, untold)
    attached.shutdown()
    assert list(history.contents()) == []
    assert history.names() == ["clone", "hash-snap0", "snap0", "snap1", "snap2", "vol"]

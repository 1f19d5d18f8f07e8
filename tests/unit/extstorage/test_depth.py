# SPDX-License-Identifier: BSD-2-Clause
"""Long histories cost nothing: reads through a hundred snapshots and a thousand clones of clones ask few layers.

What is counted is what is asked of the store, not time.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from extstorage import catalog, gc
from extstorage.file_layers import FileLayer
from extstorage.files_store import FilesStore, create_store
from extstorage.maps import DEPTH
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.datapath.checks import verify
from tests.datapath.memory_store import MemoryLayer, MemoryStore
from tests.datapath.model import Model

SIZE = 2 * BLOCK + 3 * PAGE + SECTOR
SNAPSHOTS = 100
CLONES = {MemoryStore: 1000, FilesStore: 250}


@pytest.fixture(params=[MemoryLayer, FileLayer])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param is MemoryLayer else create_store(tmp_path / "store")


@pytest.fixture
def asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each reading method of a layer was called."""
    counted: Counter[str] = Counter()
    kind: type = MemoryLayer if isinstance(store, MemoryStore) else FileLayer

    def count(name: str) -> None:
        real = getattr(kind, name)

        def counting(*arguments: object) -> object:
            counted[name] += 1
            return real(*arguments)

        monkeypatch.setattr(kind, name, counting)

    for name in ("readinto", "load_pages"):
        count(name)
    return counted


def change(session: Session, model: Model, chance: random.Random, length: int = PAGE) -> None:
    offset = chance.randrange(model.size - length + 1)
    data = chance.randbytes(length)
    session.write(memoryview(data), offset)
    model.write(data, offset)


def check(store: Store, name: str, model: Model) -> None:
    session = Session(store, name)
    verify(session, model, name)
    session.shutdown()


def cost_of_a_page(session: Session, model: Model, asked: Counter[str]) -> int:
    """Layer reads for one page in each block, from a server that has nothing in memory yet."""
    asked.clear()
    for start in range(0, model.size, BLOCK):
        buffer = bytearray(min(PAGE, model.size - start))
        session.readinto(memoryview(buffer), start)
        assert buffer == model.read(start, len(buffer))
    return asked.total()


def test_snapshot_after_snapshot(store: Store, asked: Counter[str]) -> None:
    chance = random.Random(1)
    catalog.create_volume(store, "vol", SIZE)
    session, model = Session(store, "vol"), Model(SIZE)
    kept: dict[str, Model] = {}
    for number in range(SNAPSHOTS):
        change(session, model, chance, chance.choice((PAGE, SECTOR, 700)))
        session.snapshot(f"s{number}", Info(created=0.0))
        kept[f"s{number}"] = model.copy()
    verify(session, model, "vol")
    session.shutdown()
    for name in ("s0", "s1", "s50", "s99"):
        check(store, name, kept[name])
    again = Session(store, "vol")
    assert cost_of_a_page(again, model, asked) <= 3 * (DEPTH + 2)
    # Removing any of them, in any order, changes no other.
    for name in chance.sample(sorted(kept), len(kept) - 3):
        catalog.remove(store, name)
        del kept[name]
    gc.collect(store)
    verify(again, model, "vol")
    for name, expected in kept.items():
        check(store, name, expected)


def test_clones_of_clones(store: Store, asked: Counter[str]) -> None:
    """Each writes a little, and its snapshot is what the next begins as."""
    chance = random.Random(2)
    catalog.create_volume(store, "vol0", SIZE)
    model = Model(SIZE)
    costs = []
    count = CLONES[MemoryStore if isinstance(store, MemoryStore) else FilesStore]
    for number in range(count):
        session = Session(store, f"vol{number}")
        if number in (1, 10, count - 1):
            costs.append(cost_of_a_page(session, model, asked))
            verify(session, model, f"vol{number}")
        change(session, model, chance)
        session.snapshot(f"snap{number}", Info(created=0.0))
        session.shutdown()
        if number + 1 < count:
            catalog.create_volume(store, f"vol{number + 1}", SIZE, origin=f"snap{number}")
        # Only the last two stay: a parent is never needed by its child.
        if number:
            catalog.remove(store, f"vol{number - 1}")
            catalog.remove(store, f"snap{number - 1}")
    assert max(costs) <= 3 * (DEPTH + 2), costs
    last = Session(store, f"vol{count - 1}")
    verify(last, model, "the last")
    assert len(last._volume.map.sources) <= 3 * DEPTH
    last.shutdown()
    for name in store.names():
        catalog.remove(store, name)
    gc.collect(store)
    assert list(store.layers()) == []

# SPDX-License-Identifier: BSD-2-Clause
"""Volumes against a model: any sequence of writes, discards, snapshots, clones, growth and deaths reads as it must.

A sector is filled with one byte value, so the model of a volume is one byte per sector, and after the death of the
machine a sector may hold what was flushed or anything written since.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extstorage import catalog, gc
from extstorage.files_store import create_store
from extstorage.memory_store import MemoryStore
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.session import Session
from extstorage.store import Info, Store

SIZE = 2 * BLOCK + 5 * PAGE + SECTOR
MOST_SNAPSHOTS = 12


class World(Protocol):
    store: Store

    def process_dies(self) -> None: ...

    def machine_dies(self, chance: random.Random) -> None: ...


class MemoryWorld:
    """The memory store and a directory that plays /run."""

    def __init__(self, directory: Path, *, atomic: bool = False) -> None:
        self.store = MemoryStore(atomic=atomic)
        self.run = directory / "run"
        self.run.mkdir()

    def process_dies(self) -> None:
        self.store.drop_locks()

    def machine_dies(self, chance: random.Random) -> None:
        self.store.die(chance)
        shutil.rmtree(self.run)
        self.run.mkdir()


class FilesWorld:
    """The files store. The page cache outlives these tests, so the death of the machine is the memory store's part."""

    def __init__(self, directory: Path) -> None:
        self.store = create_store(directory / "store")
        self.run = directory / "run"
        self.run.mkdir()

    def process_dies(self) -> None:
        """The session's descriptors are closed by the caller, which drops it."""

    def machine_dies(self, chance: random.Random) -> None:
        """Not here."""


class Model:
    """One volume as it must be."""

    def __init__(self, sectors: bytearray) -> None:
        self.now = sectors
        self.maybe: dict[int, set[int]] = {}

    def fill(self, first: int, count: int, value: int) -> None:
        for sector in range(first, first + count):
            if self.now[sector] != value:
                self.maybe.setdefault(sector, {self.now[sector]}).add(value)
                self.now[sector] = value

    def flushed(self) -> None:
        self.maybe.clear()

    def after_death(self, found: bytearray) -> None:
        for sector, value in enumerate(found):
            assert value == self.now[sector] or value in self.maybe.get(sector, ()), f"sector {sector}"
        self.now = found
        self.maybe.clear()


class Bench:
    """Drives one volume, its snapshots and their clones, and their models alike."""

    def __init__(self, world: MemoryWorld | FilesWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        catalog.create_volume(world.store, "vol", SIZE)
        self.model = Model(bytearray(SIZE // SECTOR))
        self.templates: dict[str, bytes] = {}
        self.count = 0
        self.session = self._start()

    def _start(self) -> Session:
        session = Session(self.world.store, "vol", self.world.run)
        session.resume()
        session.open(True)
        return session

    def _range(self) -> tuple[int, int]:
        sectors = len(self.model.now)
        kind = self.random.randrange(4)
        if kind == 0:
            first = self.random.randrange(sectors)
            return first, min(sectors - first, self.random.randint(1, 20))
        if kind == 1:
            page = self.random.randrange(sectors // 8)
            return page * 8, min(8 * self.random.randint(1, 4), sectors - page * 8)
        if kind == 2:
            block = self.random.randrange(-(-sectors // (BLOCK // SECTOR)))
            first = block * (BLOCK // SECTOR)
            return first, min(BLOCK // SECTOR, sectors - first)
        first = self.random.randrange(sectors)
        return first, self.random.randint(1, min(sectors - first, 4096))

    def write(self) -> None:
        first, count = self._range()
        value = self.random.randint(1, 255)
        self.session.write(memoryview(bytes([value]) * (count * SECTOR)), first * SECTOR)
        self.model.fill(first, count, value)

    def zero(self) -> None:
        first, count = self._range()
        self.session.zero(first * SECTOR, count * SECTOR)
        self.model.fill(first, count, 0)

    def discard(self) -> None:
        first, count = self._range()
        first, end = -(-first // 8) * 8, (first + count) // 8 * 8
        self.session.discard(first * SECTOR, max(0, end - first) * SECTOR)
        self.model.fill(first, max(0, end - first), 0)

    def flush(self) -> None:
        self.session.flush()
        self.model.flushed()

    def snapshot(self) -> None:
        if len(self.templates) >= MOST_SNAPSHOTS:
            self.drop()
        self.count += 1
        name = f"snap{self.count}"
        self.session.snapshot(name, Info(created=0.0))
        self.model.flushed()
        self.templates[name] = bytes(self.model.now)

    def drop(self) -> None:
        if self.templates:
            name = self.random.choice(sorted(self.templates))
            catalog.remove(self.world.store, name)
            del self.templates[name]
            gc.collect(self.world.store)

    def rebase(self) -> None:
        """Throw the volume away and go on with a clone of one of its snapshots, perhaps a larger one."""
        if not self.templates:
            return
        name = self.random.choice(sorted(self.templates))
        self.session.shutdown()
        catalog.remove(self.world.store, "vol")
        sectors = len(self.templates[name]) + self.random.choice((0, 1, 9))
        catalog.create_volume(self.world.store, "vol", sectors * SECTOR, origin=name)
        self.model = Model(bytearray(self.templates[name].ljust(sectors, b"\0")))
        self.session = self._start()

    def grow(self) -> None:
        sectors = len(self.model.now) + self.random.choice((1, 8, 77))
        self.session.grow(sectors * SECTOR)
        self.model.flushed()
        self.model.now.extend(bytes(sectors - len(self.model.now)))

    def reopen(self) -> None:
        self.session.shutdown()
        self.model.flushed()
        self.session = self._start()

    def kill(self) -> None:
        """The server dies: everything acknowledged must be there for its successor."""
        old, self.session = self.session, None  # type: ignore[assignment]
        lock = old._lock
        assert lock is not None
        lock.release()
        del old
        self.world.process_dies()
        self.session = self._start()

    def power_loss(self) -> None:
        self.session = None  # type: ignore[assignment]
        self.world.machine_dies(self.random)
        self.session = self._start()
        self.model.after_death(self.contents(self.session))

    def contents(self, session: Session) -> bytearray:
        data = bytearray(session.size)
        view = memoryview(data)
        for start in range(0, session.size, BLOCK):
            session.readinto(view[start : start + BLOCK], start)
        found = bytearray()
        for start in range(0, len(data), SECTOR):
            sector = data[start : start + SECTOR]
            assert sector.count(sector[0]) == len(sector), f"sector {start // SECTOR} is mixed"
            found.append(sector[0])
        return found

    def check(self) -> None:
        assert self.contents(self.session) == self.model.now
        self._check_extents()
        for name, expected in self.templates.items():
            reader = Session(self.world.store, name)
            assert self.contents(reader) == expected, name
            reader.shutdown()

    def _check_extents(self) -> None:
        position = 0
        while position < self.session.size:
            for extent in self.session.extents(position, self.session.size - position):
                if extent.hole:
                    first, end = position // SECTOR, (position + extent.length) // SECTOR
                    assert not any(self.model.now[first:end])
                position += extent.length


OTHERS = ("zero", "discard", "flush", "snapshot", "snapshot", "drop", "rebase", "grow", "reopen", "kill")
ACTIONS = ("write",) * 8 + OTHERS


def drive(bench: Bench, actions: list[str]) -> None:
    for action in actions:
        getattr(bench, action)()
    bench.check()
    bench.session.shutdown()
    for name in bench.world.store.names():
        catalog.remove(bench.world.store, name)
    gc.collect(bench.world.store)
    assert list(bench.world.store.layers()) == []


QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("atomic", [False, True])
@QUICK
@given(seed=st.integers(0, 1 << 32), actions=st.lists(st.sampled_from((*ACTIONS, "power_loss")), max_size=30))
def test_memory_store_reads_as_the_model(tmp_path: Path, atomic: bool, seed: int, actions: list[str]) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    drive(Bench(MemoryWorld(tmp_path, atomic=atomic), seed), actions)


@QUICK
@given(seed=st.integers(0, 1 << 32), actions=st.lists(st.sampled_from(ACTIONS), max_size=30))
def test_files_store_reads_as_the_model(tmp_path: Path, seed: int, actions: list[str]) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    drive(Bench(FilesWorld(tmp_path), seed), actions)


@pytest.mark.parametrize("seed", range(4))
def test_long_history(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    bench = Bench(MemoryWorld(tmp_path, atomic=bool(seed % 2)), seed)
    for _ in range(6):
        for _ in range(40):
            getattr(bench, chance.choice((*ACTIONS, "power_loss")))()
        bench.check()

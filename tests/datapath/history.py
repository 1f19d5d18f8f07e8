# SPDX-License-Identifier: BSD-2-Clause
"""Random work on a store beside a model, for tests of the collection: also by several at once, while it runs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

from extstorage import catalog, fsck, gc, maps
from extstorage.maps import Source
from extstorage.names import BLOCK, PAGE
from extstorage.session import Session
from extstorage.store import Info, Store

BLOCKS = 4
MOST = 5


def snapshot(store: Store, volume: str, name: str) -> None:
    session = Session(store, volume)
    session.snapshot(name, Info(created=1.0, origin=volume))
    session.shutdown()


def write(store: Store, volume: str, block: int, byte: bytes = b"x") -> None:
    session = Session(store, volume)
    session.write(memoryview(byte * PAGE), block * BLOCK)
    session.shutdown()


def read(store: Store, volume: str, block: int) -> bytes:
    buffer = bytearray(PAGE)
    session = Session(store, volume)
    session.readinto(memoryview(buffer), block * BLOCK)
    session.shutdown()
    return bytes(buffer)


def named(volume_map: maps.VolumeMap) -> Iterator[tuple[Source, int]]:
    for index in range(volume_map.blocks):
        for source in volume_map.layers(index):
            yield source, index


class History:
    """Random work on a store, beside a model: what each name must read as, block by block."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.volumes: dict[str, list[bytes]] = {}
        self.snapshots: dict[str, list[bytes]] = {}
        self.count = 0

    def new_name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def step(self) -> None:
        actions = [self.create, self.clone, self.clone, self.write, self.write, self.write, self.snapshot, self.remove]
        if len(self.volumes) + len(self.snapshots) > MOST:
            actions = [self.remove]
        self.chance.choice(actions)()

    def create(self) -> None:
        name = self.new_name("v")
        catalog.create_volume(self.store, name, BLOCKS * BLOCK)
        self.volumes[name] = [bytes(PAGE)] * BLOCKS

    def clone(self) -> None:
        if self.snapshots:
            origin = self.chance.choice(sorted(self.snapshots))
            name = self.new_name("v")
            catalog.create_volume(self.store, name, BLOCKS * BLOCK, origin=origin)
            self.volumes[name] = list(self.snapshots[origin])

    def write(self) -> None:
        if self.volumes:
            name, block = self.chance.choice(sorted(self.volumes)), self.chance.randrange(BLOCKS)
            data = self.chance.randbytes(PAGE)
            session = Session(self.store, name)
            if self.chance.random() < 0.5:
                session.zero(block * BLOCK, BLOCK)  # owns the whole block: what lies below can go
            session.write(memoryview(data), block * BLOCK)
            session.shutdown()
            self.volumes[name][block] = data

    def snapshot(self) -> None:
        if self.volumes:
            volume, name = self.chance.choice(sorted(self.volumes)), self.new_name("s")
            snapshot(self.store, volume, name)
            self.snapshots[name] = list(self.volumes[volume])

    def remove(self) -> None:
        table = self.chance.choice([self.volumes, self.snapshots])
        if table:
            name = self.chance.choice(sorted(table))
            catalog.remove(self.store, name)
            del table[name]

    def check(self) -> None:
        for name, blocks in {**self.volumes, **self.snapshots}.items():
            assert [read(self.store, name, at) == blocks[at] for at in range(BLOCKS)] == [True] * BLOCKS, name

    def check_nothing_is_left(self) -> None:
        """After a collection, each layer is named, found by looking at every entry of every map."""
        every = [self.store.read_map(name) for name in self.store.names()]
        wanted = {source for one in every for source, _ in named(one)} | {one.current for one in every}
        assert set(self.store.layers()) <= wanted


def stress(open_store: Callable[[], Store], seed: int, steps: int) -> list[gc.Report]:
    """Three clone, snapshot, write and remove, each on its own names from a common template; gc loops beside them.

    Everything must read as it was written, whenever it is read. Answers with what the collections say.
    """
    store = open_store()
    base = History(store, seed)
    base.create()
    base.write()
    base.snapshot()
    template = next(iter(base.snapshots))
    failures: list[BaseException] = []
    done: list[History] = []
    reports: list[gc.Report] = []
    over = threading.Event()

    def work(number: int) -> None:
        try:
            mine = History(open_store(), seed + number)
            mine.count = 1000 * number
            for _ in range(steps):
                if not mine.snapshots:
                    name = mine.new_name("v")
                    catalog.create_volume(mine.store, name, BLOCKS * BLOCK, origin=template)
                    mine.volumes[name] = list(base.snapshots[template])
                    mine.snapshot()
                mine.step()
            mine.check()
            done.append(mine)
        except BaseException as error:
            failures.append(error)

    def collect() -> None:
        try:
            mine = open_store()
            while not over.is_set():
                reports.append(gc.collect(mine))
        except BaseException as error:
            failures.append(error)

    collector = threading.Thread(target=collect)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(1, 4)]
    for thread in (collector, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    over.set()
    collector.join()
    assert not failures, failures
    assert all(not report.faults for report in reports)
    for mine in done:
        mine.check()
    reports.append(gc.collect(store))
    base.check()
    done[0].check_nothing_is_left()
    assert fsck.check(store, repair=True) == []
    return reports

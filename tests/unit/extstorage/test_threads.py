# SPDX-License-Identifier: BSD-2-Clause
"""Requests in parallel on the same pages, while snapshots are taken: each is a moment that there was.

Every sector belongs to one thread, and neighbours to different ones, so that all of them change the same pages. A
sector says which change of its thread it is, and what that thread had seen the others complete before it began.
"""

from __future__ import annotations

import random
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import extstorage.session
from extstorage import catalog, gc
from extstorage.files_store import create_store
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.datapath.checks import polling, read
from tests.datapath.memory_store import MemoryStore

THREADS = 4
SECTORS = 16  # of each thread in each place
PLACES = (0, BLOCK - 4 * PAGE, BLOCK + 7 * PAGE)
CHANGES = 250
SNAPSHOTS = 8
RUNS = 5
SHARED_CHANGES = 80
SIZE = 2 * BLOCK

_STAMP = struct.Struct(f"<{1 + THREADS}I")


@pytest.fixture(params=["files", "memory", "atomic"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    memory = MemoryStore(atomic=request.param == "atomic")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield create_store(tmp_path / "store") if request.param == "files" else memory
    sys.setswitchinterval(interval)


class Writer(threading.Thread):
    """Changes its own sectors, and remembers in which order."""

    def __init__(self, number: int, session: Session, done: list[int], seed: int, changes: int = CHANGES) -> None:
        super().__init__()
        self._changes = changes
        self._pause = 0.001 if changes != CHANGES else 0.0
        self.number = number
        self.log: list[tuple[int, bytes]] = []
        self.fault: Exception | None = None
        self._session = session
        self._done = done
        self._random = random.Random(seed * 100 + number)

    def run(self) -> None:
        try:
            for change in range(1, self._changes + 1):
                self._change(change)
        except Exception as error:
            self.fault = error

    def _change(self, change: int) -> None:
        offset = self._random.choice(PLACES) + (self._random.randrange(SECTORS) * THREADS + self.number) * SECTOR
        content = _STAMP.pack(change, *self._done).ljust(SECTOR, b"%c" % (change % 255 + 1))
        if self._random.random() < 0.1:
            content = bytes(SECTOR)
        self.log.append((offset, content))
        if any(content):
            self._session.write(memoryview(content), offset)
        else:
            self._session.zero(offset, SECTOR)
        assert read(self._session, offset, SECTOR) == content
        if self._random.random() < 0.05:
            self._session.flush()
        self._done[self.number] = change
        time.sleep(self._pause)


def states(log: list[tuple[int, bytes]], content: dict[int, bytes]) -> Iterator[int]:
    """After how many changes of a thread its sectors are as in `content`."""
    state = dict.fromkeys(content, bytes(SECTOR))
    wrong = {offset for offset, found in content.items() if any(found)}
    if not wrong:
        yield 0
    for count, (offset, data) in enumerate(log, 1):
        state[offset] = data
        wrong.discard(offset) if content[offset] == data else wrong.add(offset)
        if not wrong:
            yield count


def sectors_of(number: int) -> list[int]:
    return [place + (position * THREADS + number) * SECTOR for place in PLACES for position in range(SECTORS)]


def check_moment(session: Session, writers: list[Writer], name: str) -> None:
    """There is a moment of every thread that fits, and none of them knows more than the others had done."""
    last: list[tuple[int, ...]] = []
    for writer in writers:
        content = {offset: read(session, offset, SECTOR) for offset in sectors_of(writer.number)}
        fitting = list(states(writer.log, content))
        assert fitting, f"{name}: thread {writer.number} never had these contents"
        stamps = [_STAMP.unpack_from(found) for found in content.values() if any(found)]
        newest = max(stamps, default=(0,) * (1 + THREADS))
        last.append((fitting[-1], *newest[1:]))
    for _, *known in last:
        for number, seen in enumerate(known):
            assert last[number][0] >= seen, f"{name}: change {seen} of thread {number} was complete, and is not there"


def test_snapshots_of_a_volume_in_use_are_moments(store: Store, seeds: list[int]) -> None:
    for seed in (10 * first + part for first in seeds for part in range(RUNS)):
        volume = f"vol{seed}"
        catalog.create_volume(store, volume, SIZE)
        session = Session(store, volume)
        session.open(True)
        done = [0] * THREADS
        writers = [Writer(number, session, done, seed) for number in range(THREADS)]
        for writer in writers:
            writer.start()
        snapshots = take_snapshots(store, session, writers, volume)
        for writer in writers:
            writer.join()
            assert writer.fault is None, f"--seed={seed // 10}: {writer.fault!r}"
        gc.collect(store)
        for name in snapshots:
            reader = Session(store, name)
            check_moment(reader, writers, f"--seed={seed // 10} {name}")
            reader.shutdown()
        check_moment(session, writers, f"--seed={seed // 10} {volume}")
        for writer in writers:
            final = dict(writer.log)
            assert all(read(session, offset, SECTOR) == data for offset, data in final.items())
        session.shutdown()


def take_snapshots(store: Store, session: Session, writers: list[Writer], volume: str) -> list[str]:
    names = []
    for number in range(SNAPSHOTS):
        while sum(len(writer.log) for writer in writers) < number * THREADS * CHANGES // SNAPSHOTS and any(
            writer.is_alive() for writer in writers
        ):
            gc.collect(store)
        names.append(f"{volume}.snap{number}")
        session.snapshot(names[-1], Info(created=0.0))
        if number % 3 == 2:
            catalog.remove(store, names.pop(0))
    return names


def test_two_servers_share_a_volume_under_load(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As during a live migration, but with both sides writing all the time: the lock goes to and fro with the data."""
    monkeypatch.setattr(extstorage.session, "YIELD_POLL", 0.001)
    taken = []
    obtain = Session._obtain

    def counting(session: Session, patience: float = 0.0, **options: bool) -> None:
        obtain(session, patience, **options)
        taken.append(session)

    monkeypatch.setattr(Session, "_obtain", counting)
    catalog.create_volume(store, "vol", SIZE)
    sides = [Session(store, "vol"), Session(store, "vol")]
    sides[0].open(True)
    sides[1].close()
    for side in sides:
        side.open(False)
    done = [0] * THREADS
    writers = [Writer(number, sides[number % 2], done, 1, SHARED_CHANGES) for number in range(THREADS)]
    with polling(sides[0]), polling(sides[1]):
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
            assert writer.fault is None, writer.fault
        assert all(
            read(side, offset, SECTOR) == data
            for side in sides
            for writer in writers
            for offset, data in dict(writer.log).items()
        )
    assert {id(side) for side in taken} == {id(side) for side in sides}, "the lock stayed where it was"
    sides[0].close()
    sides[1].open(True)
    check_moment(sides[1], writers, "vol")
    assert sides[1].holds_lock
    sides[1].shutdown()

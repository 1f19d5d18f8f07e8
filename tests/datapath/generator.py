# SPDX-License-Identifier: BSD-2-Clause
"""A generator like fsx for everything that can happen to volumes, compared with byte arrays after each step.

It keeps a few small volumes, each with two nodes that may serve it, and snapshots of them. The same seed gives the same
operations over every store. A failure says the seed, the step, and what was done last.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from extstorage import catalog, gc
from extstorage.errors import HeldError, NotOpenError, ReadOnlyError
from extstorage.hashing import PREFIX, hash_snapshot
from extstorage.intake import recent
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.progress import untold
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.datapath.checks import no_damage, polling, read, refuses, settle, verify, writing
from tests.datapath.model import Model
from tests.datapath.tap import Killed, Reaper, Saboteur

#: Few blocks, and tails of every kind: a sector, a page, a page and a sector, none.
SIZES = (SECTOR, PAGE, 3 * PAGE + SECTOR, BLOCK, BLOCK + SECTOR, 2 * BLOCK - PAGE, 3 * BLOCK + 5 * PAGE + SECTOR)
SHORT = (1, 511, SECTOR, 700, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 5 * PAGE + 77)
LENGTHS = (*SHORT * 5, *(64 << 10,) * 5, BLOCK + PAGE)
#: What an interrupted hashing leaves.
PENDING = (PREFIX, recent(PREFIX))
MOST_DISKS = 4
MOST_SNAPSHOTS = 10
LAST = 25

WEIGHTS = {
    "write": 30,
    "read": 10,
    "zero": 5,
    "discard": 5,
    "flush": 4,
    "extents": 2,
    "snapshot": 7,
    "clone": 3,
    "grow": 2,
    "remove_disk": 1,
    "remove_snapshot": 3,
    "collect": 3,
    "hash": 1,
    "check_snapshot": 2,
    "reopen": 2,
    "restart": 2,
    "kill": 3,
    "lose_power": 1,
    "hand_over": 2,
    "fail_to_hand_over": 1,
    "meddle": 1,
}


class World(ABC):
    """A store as several nodes see it. A world that can lose what was not synced also has `lose_power(chance)`."""

    @abstractmethod
    def open(self) -> Store:
        """The store as one more process opens it."""

    def serve(self, name: str, run: Path | None) -> Session:
        """A volume as one more process serves it."""
        return Session(self.open(), name, run)

    def kill(self, session: Session) -> None:
        """The process with this session dies: its lock is free, and nothing else happened."""
        assert session._lock is not None
        session._lock.release()


class Disk:
    """One volume, its model, and the two nodes that may serve it."""

    def __init__(self, name: str, model: Model, directory: Path) -> None:
        self.name = name
        self.model = model
        self.runs = [directory / f"{name}.{node}" for node in (0, 1)]
        for run in self.runs:
            run.mkdir(parents=True, exist_ok=True)
        self.node = 0
        self.sessions: list[Session | None] = [None, None]

    @property
    def session(self) -> Session:
        found = self.sessions[self.node]
        assert found is not None
        return found


class Failed(AssertionError):
    """Says how to do it again."""


class Expected(NamedTuple):
    """What there must be at one moment."""

    disks: Mapping[str, Model]
    snapshots: Mapping[str, Model]


class Generator:
    """See the module.

    `tell` hears what must be there, each time that it has changed. With a `reaper`, all processes die now and then.
    """

    lengths: Sequence[int] = LENGTHS
    weights: Mapping[str, float] = WEIGHTS

    def __init__(
        self, world: World, directory: Path, seed: int, tell: Callable[[Expected], None] | None = None
    ) -> None:
        self.world = world
        self.store = world.open()
        self.directory = directory
        self.seed = seed
        self.random = random.Random(seed)
        self.disks: list[Disk] = []
        self.snapshots: dict[str, Model] = {}
        self.done: deque[str] = deque(maxlen=LAST)
        self.count = 0
        self.tell = tell
        self.reaper: Reaper | None = None
        self.served: list[Session] = []
        # What is being done: a request, a size that a volume gets, a name that comes or goes.
        self.growing = 0
        self.coming: dict[str, Model] = {}
        self.going = ""
        self.running: tuple[Disk, Callable[[Session | Model], None]] | None = None

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                if not self._survives(self.step):
                    self.recover()
            if self.reaper is not None:
                self.reaper.revive()
            self.check()
            self.remove_all()
        except Exception as error:
            last = "\n  ".join(self.done)
            raise Failed(f"--seed={self.seed}, step {self.count}: {error!r}; the last steps:\n  {last}") from error

    def _survives(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except Killed:
            return False
        except OSError as error:
            if not isinstance(self.reaper, Saboteur):
                raise
            self._note(f"failed: {error}")
            return False
        return True

    def step(self) -> None:
        self.count += 1
        if not self.disks:
            self._new_disk("")
            return
        action = self.random.choices(list(self.weights), list(self.weights.values()))[0]
        getattr(self, action)(self.random.choice(self.disks))
        self._changed()

    def _changed(self) -> None:
        if self.tell is not None:
            disks = {disk.name: disk.model.moment() for disk in self.disks}
            self.tell(Expected(disks, dict(self.snapshots)))

    def _note(self, text: str) -> None:
        self.done.append(f"{self.count}: {text}")

    # What clients do.

    def _range(self, size: int) -> tuple[int, int]:
        """Near the places where things change: the beginning, the edges of blocks, the end."""
        length = min(size, self.random.choice(self.lengths))
        place = self.random.randrange(4)
        if place == 0:
            start = self.random.randrange(16 * PAGE)
        elif place == 1:
            start = self.random.randrange(1, 4) * BLOCK - self.random.randrange(2 * PAGE)
        elif place == 2:
            start = size - length - self.random.choice((0, 0, 1, SECTOR, PAGE))
        else:
            start = self.random.randrange(size)
        if self.random.random() < 0.5:
            start -= start % PAGE
        start = max(0, min(start, size - 1))
        return start, min(length, size - start)

    def write(self, disk: Disk) -> None:
        offset, length = self._range(disk.model.size)
        data = self.random.randbytes(length)
        self._note(f"write {disk.name} {offset} {length}")
        self._request(disk, disk.session, writing(data, offset))

    def _request(self, disk: Disk, session: Session, change: Callable[[Session | Model], None]) -> None:
        """Change the volume and then the model; a death in between leaves `running`."""
        self.running = disk, change
        change(session)
        self.running = None
        change(disk.model)

    def read(self, disk: Disk) -> None:
        offset, length = self._range(disk.model.size)
        self._note(f"read {disk.name} {offset} {length}")
        assert read(disk.session, offset, length) == disk.model.read(offset, length)

    def zero(self, disk: Disk) -> None:
        offset, length = self._wide_range(disk.model.size)
        self._note(f"zero {disk.name} {offset} {length}")
        self._request(disk, disk.session, lambda on: on.zero(offset, length))

    def discard(self, disk: Disk) -> None:
        offset, length = self._wide_range(disk.model.size)
        self._note(f"discard {disk.name} {offset} {length}")
        self._request(disk, disk.session, lambda on: on.discard(offset, length))

    def _wide_range(self, size: int) -> tuple[int, int]:
        """Whole blocks too, which cost nothing here."""
        if self.random.random() < 0.3:
            start = self.random.randrange(-(-size // BLOCK)) * BLOCK
            return start, min(size - start, self.random.choice((BLOCK, 2 * BLOCK)))
        return self._range(size)

    def flush(self, disk: Disk) -> None:
        self._note(f"flush {disk.name}")
        disk.session.flush()
        disk.model.flushed()

    def extents(self, disk: Disk) -> None:
        """What is called a hole reads as zeros."""
        self._note(f"extents {disk.name}")
        position = 0
        while position < disk.model.size:
            found = disk.session.extents(position, disk.model.size - position)
            assert found
            for extent in found:
                if extent.hole:
                    first, end = position // PAGE, -(-(position + extent.length) // PAGE)
                    written = (page for page in disk.model.pages if first <= page < end)
                    for page in written:
                        start, stop = max(position, page * PAGE), min(position + extent.length, (page + 1) * PAGE)
                        assert not any(disk.model.read(start, stop - start)), f"page {page} is no hole"
                position += extent.length
        assert position == disk.model.size

    # What administrators do.

    def _new_disk(self, origin: str) -> None:
        name = f"disk{self.count}"
        model = self.snapshots[origin] if origin else Model(self.random.choice(SIZES))
        size = model.size + (self.random.choice((0, 0, SECTOR, PAGE, BLOCK)) if origin else 0)
        self._note(f"new {name} of {size} from {origin!r}")
        self.coming = {name: model.copy(size)}
        catalog.create_volume(self.store, name, size, origin=origin)
        disk = Disk(name, model.copy(size), self.directory)
        self.disks.append(disk)
        self._changed()
        self._start(disk)

    def _serve(self, name: str, run: Path | None = None) -> Session:
        session = self.world.serve(name, run)
        self.served = [*(old for old in self.served if old._lock is not None), session]
        return session

    def _read(self, name: str) -> Session:
        """A snapshot, by whom no server needs to know."""
        session = Session(self.store, name)
        self.served.append(session)
        return session

    def _start(self, disk: Disk) -> None:
        session = self._serve(disk.name, disk.runs[disk.node])
        disk.sessions[disk.node] = session
        session.resume()
        session.open(True)

    def snapshot(self, disk: Disk) -> None:
        if len(self.snapshots) >= MOST_SNAPSHOTS:
            self.remove_snapshot(disk)
        name = f"snap{self.count}"
        self._note(f"snapshot {disk.name} {name}")
        self.coming = {name: disk.model}
        disk.session.snapshot(name, Info(created=0.0))
        disk.model.flushed()
        self.snapshots[name] = disk.model.copy()

    def clone(self, disk: Disk) -> None:
        if self.snapshots:
            if len(self.disks) >= MOST_DISKS:
                self.remove_disk(disk)
            self._new_disk(self.random.choice(sorted(self.snapshots)))

    def grow(self, disk: Disk) -> None:
        size = disk.model.size + self.random.choice((SECTOR, PAGE, 9 * SECTOR, BLOCK))
        if size > 6 * BLOCK:
            return
        self._note(f"grow {disk.name} to {size}")
        self.growing = size
        disk.session.grow(size)
        disk.model.size = size
        disk.model.flushed()

    def remove_disk(self, disk: Disk) -> None:
        self._note(f"remove {disk.name}")
        disk.session.shutdown()
        self.going = disk.name
        catalog.remove(self.store, disk.name)
        self.disks.remove(disk)
        self._changed()
        for run in disk.runs:
            shutil.rmtree(run)

    def collect(self, disk: Disk) -> None:
        self._note("collect")
        assert not gc.collect(self.world.open()).faults

    def hash(self, disk: Disk) -> None:
        """Its blocks get the names of their content; nobody who reads it notices."""
        if self.snapshots:
            name = self.random.choice(sorted(self.snapshots))
            self._note(f"hash {name}")
            hash_snapshot(self.store, name, untold)

    def remove_snapshot(self, disk: Disk) -> None:
        if self.snapshots:
            name = self.random.choice(sorted(self.snapshots))
            self._note(f"remove {name}")
            self.going = name
            catalog.remove(self.store, name)
            del self.snapshots[name]
            self._changed()

    # What happens to servers.

    def reopen(self, disk: Disk) -> None:
        self._note(f"close and open {disk.name}")
        disk.session.close()
        disk.model.flushed()
        refuses(disk.session, NotOpenError)
        disk.session.open(True)

    def restart(self, disk: Disk) -> None:
        self._note(f"restart {disk.name}")
        disk.session.shutdown()
        disk.model.flushed()
        self._start(disk)

    def kill(self, disk: Disk) -> None:
        """Everything acknowledged is there for the successor on the same node."""
        self._note(f"kill {disk.name}")
        self.world.kill(disk.session)
        self._start(disk)

    def recover(self) -> None:
        """Everything that served, and whatever ran, was killed. All that was acknowledged is there."""
        assert self.reaper is not None
        self.reaper.revive()
        if isinstance(self.reaper, Saboteur) and self._goes_on():
            self.reaper.aim(self.random.randrange(120))
            return
        self._note("killed all")
        if self.random.random() < 0.2:
            no_damage(self.store)
        names = set(self.store.names())
        holders = [session for session in self.served if session._lock is not None]
        for session in holders:
            self.world.kill(session)
        for disk in list(self.disks):
            self._recover_disk(disk, disk.name in names, holders)
        for name in self.snapshots.keys() - names:
            assert name == self.going, f"{name} is gone"
            del self.snapshots[name]
        for name in names - self.snapshots.keys() - {disk.name for disk in self.disks}:
            if name.startswith(PENDING):
                continue
            reader = self._read(name)
            verify(reader, self.coming[name], name)
            reader.shutdown()
            catalog.remove(self.store, name)
        self.reaper.aim(self.random.randrange(120))

    def _goes_on(self) -> bool:
        """After a request that failed: it was done, or not, or in part, and nothing else happened."""
        if self.running is None or self.random.random() < 0.2:
            return False
        disk, change = self.running
        self.running = None
        models = [disk.model.copy(), disk.model.copy()]
        change(models[1])
        models[1].flushed()
        other = disk.sessions[1 - disk.node]
        # In a migration, the other side may have the lock.
        with polling(other) if other else contextlib.nullcontext():
            settle(disk.session, models, disk.name)
        disk.model.pages = models[0].pages
        return True

    def _recover_disk(self, disk: Disk, is_there: bool, holders: list[Session]) -> None:
        """On the node where it was written last; the other one has nothing that counts."""
        disk.node = next((node for node in (0, 1) if disk.sessions[node] in holders), disk.node)
        disk.sessions = [None, None]
        if not is_there:
            assert disk.name == self.going, f"{disk.name} is gone"
            self.disks.remove(disk)
            return
        self._start(disk)
        models = [disk.model.copy()]
        if self.running and self.running[0] is disk:
            models.append(disk.model.copy())
            self.running[1](models[1])
            models[1].flushed()
            self.running = None
        if disk.session.size != disk.model.size:
            assert disk.session.size == self.growing
            disk.model.size = models[0].size = self.growing
        settle(disk.session, models, disk.name)
        disk.model.pages = models[0].pages

    def lose_power(self, disk: Disk) -> None:
        """All machines die at once: what was flushed is there, the rest is old or new."""
        die = getattr(self.world, "lose_power", None)
        if die is None:
            return
        self._note("lose power")
        die(self.random)
        for one in self.disks:
            for run in one.runs:
                shutil.rmtree(run)
                run.mkdir()
            self._start(one)
            settle(one.session, [one.model], one.name)
            one.model.flushed()

    def _begin_hand_over(self, disk: Disk) -> tuple[Session, Session]:
        """As Ganeti does before a live migration: both sides attached, both opened shared."""
        source = disk.session
        target = self._serve(disk.name, disk.runs[1 - disk.node])
        target.resume()
        target.close()
        source.open(False)
        target.open(False)
        return source, target

    def hand_over(self, disk: Disk) -> None:
        self._note(f"migrate {disk.name}")
        source, target = self._begin_hand_over(disk)
        disk.sessions[1 - disk.node] = target
        for side in (source, target, source, target) if self.random.random() < 0.5 else (target,):
            other = target if side is source else source
            offset, length = self._range(disk.model.size)
            data = self.random.randbytes(length)
            with polling(other):
                self._request(disk, side, writing(data, offset))
                self._changed()
                assert read(side, 0, min(PAGE, disk.model.size)) == disk.model.read(0, min(PAGE, disk.model.size))
        source.close()
        target.open(True)
        refuses(source, NotOpenError)
        source.shutdown()
        disk.node = 1 - disk.node
        disk.sessions[disk.node] = target
        disk.sessions[1 - disk.node] = None

    def fail_to_hand_over(self, disk: Disk) -> None:
        self._note(f"fail to migrate {disk.name}")
        source, target = self._begin_hand_over(disk)
        target.close()
        source.open(True)
        target.shutdown()

    def meddle(self, disk: Disk) -> None:
        """A second writer is refused, and what a reader without the lock sees after a flush is there."""
        self._note(f"meddle with {disk.name}")
        disk.session.flush()
        disk.model.flushed()
        other = self._serve(disk.name)
        refuses(other, HeldError)
        offset, length = self._range(disk.model.size)
        assert read(other, offset, length) == disk.model.read(offset, length)
        other.shutdown()

    # What must be so.

    def check_snapshot(self, disk: Disk) -> None:
        if self.snapshots:
            name = self.random.choice(sorted(self.snapshots))
            self._note(f"check {name}")
            reader = self._read(name)
            refuses(reader, ReadOnlyError)
            verify(reader, self.snapshots[name], name)
            reader.shutdown()

    def check(self) -> None:
        for disk in self.disks:
            verify(disk.session, disk.model, disk.name)
            self.extents(disk)
        for name, model in self.snapshots.items():
            reader = self._read(name)
            verify(reader, model, name)
            reader.shutdown()

    def remove_all(self) -> None:
        """In any order, nothing stays behind."""
        for disk in list(self.disks):
            self.remove_disk(disk)
        for name in self.random.sample(sorted(self.snapshots), len(self.snapshots)):
            catalog.remove(self.store, name)
        for name in self.store.names():
            assert name.startswith(PENDING), name
            catalog.remove(self.store, name)
        gc.collect(self.store)
        assert self.store.names() == []
        assert list(self.store.layers()) == []

# SPDX-License-Identifier: BSD-2-Clause
"""The files store after a power loss: thousands of disks as a crash may leave them, and what must still be true there.

What was flushed is there; what was not is old or new, sector by sector, and never anybody else's; every map can be
read; snapshots are complete. And so that we know that this would notice, a store that forgets one of its duties fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from extstorage import file_layers, file_system, files_store
from extstorage.file_layers import FileLayer
from extstorage.files_store import FilesStore, create_store, open_store
from extstorage.hashing import PREFIX
from extstorage.intake import recent
from extstorage.maps import Source
from extstorage.names import PAGE, SECTOR
from extstorage.session import Session
from extstorage.store import Store
from ganeti_plugin import files
from tests.datapath.checks import is_one_of, no_damage, read
from tests.datapath.generator import SHORT, Expected, Generator, World
from tests.datapath.model import ZEROS, Model
from tests.datapath.powerloss import Disk
from tests.datapath.tap import Tap

PARTS = 5
STEPS = 120
STATES = 300
MOST_READ = 128


class FilesWorld(World):
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        create_store(directory)

    def open(self) -> Store:
        return open_store(self._directory)


class Recording:
    """What happened to the disk, with the moments at which something was promised."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int) -> None:
        store = tmp_path / f"store{seed}"
        store.mkdir()
        with monkeypatch.context() as patch:
            tap = Tap(store, patch)
            generator = Generator(FilesWorld(store), tmp_path / f"run{seed}", seed, tap.events.append)
            generator.lengths = SHORT
            for _ in range(steps):
                generator.step()
            # Without a word: what was not flushed stays so.
            for disk in generator.disks:
                disk.session._lock.release()  # type: ignore[union-attr]
        self.root = tap.root
        self.events = tap.events

    def crashes(self, chance: Random, count: int) -> Iterator[tuple[Disk, Expected, Expected, int]]:
        """The disk at moments chosen by chance, and what was promised before and after the step that was running."""
        nothing = Expected({}, {})
        promises = [position for position, event in enumerate(self.events) if isinstance(event, Expected)]
        moments = sorted(chance.choices(range(promises[0], len(self.events)), k=count))
        disk, before, following = Disk(self.root), nothing, 0
        for position, event in enumerate(self.events):
            if isinstance(event, Expected):
                before = event
                following += 1
            else:
                disk.happens(event)
            while moments and moments[0] == position:
                moments.pop(0)
                after = self.events[promises[following]] if following < len(promises) else before
                yield disk, before, after, position


def examine(directory: Path, run: Path, before: Expected, after: Expected, chance: Random) -> None:
    """Everything that was promised, from a new machine."""
    store = open_store(directory)
    if chance.random() < 0.15:
        no_damage(store)
    names = set(store.names())
    must = (before.disks.keys() & after.disks.keys()) | (before.snapshots.keys() & after.snapshots.keys())
    may = before.disks.keys() | after.disks.keys() | before.snapshots.keys() | after.snapshots.keys()
    pending = {name for name in names if name.startswith(PREFIX)}
    names -= pending | {recent(name) for name in pending}
    assert must <= names <= may, f"there are {sorted(names)} instead of {sorted(must)}, or at most {sorted(may)}"
    for name in chance.sample(sorted(names), min(2, len(names))):
        models = [found[name] for found in (before.disks, after.disks) if name in found]
        if models:
            examine_disk(store, name, models, run / name, chance)
        else:
            model = before.snapshots.get(name) or after.snapshots[name]
            session = Session(store, name)
            compare(session, name, [model.copy()], chance)
            session.shutdown()


def examine_disk(store: Store, name: str, models: list[Model], run: Path, chance: Random) -> None:
    run.mkdir(parents=True)
    session = Session(store, name, run)
    session.open(True)
    assert session.size in [model.size for model in models]
    compare(session, name, models, chance)
    page = chance.randrange(-(-session.size // PAGE))
    data = chance.randbytes(min(PAGE, session.size - page * PAGE))
    session.write(memoryview(data), page * PAGE)
    session.flush()
    assert read(session, page * PAGE, len(data)) == data
    session.shutdown()


def compare(session: Session, name: str, models: list[Model], chance: Random) -> None:
    pages = set().union(*(model.pages for model in models))
    if len(pages) > MOST_READ:
        first = chance.randrange(len(pages) - MOST_READ)
        pages = set(sorted(pages)[first : first + MOST_READ])
    pages.add(chance.randrange(-(-session.size // PAGE)))
    for first, end in neighbours({page for page in pages if page * PAGE < session.size}):
        start, stop = first * PAGE, min(end * PAGE, session.size)
        found = read(session, start, stop - start)
        if any(found == model.read(start, stop - start) for model in models):
            continue
        for page in range(first, end):
            content = found[page * PAGE - start :][:PAGE].ljust(PAGE, b"\0")
            allowed = [content for model in models for content in model.allowed(page)]
            what = "zeros" if content == ZEROS else "something else"
            assert is_one_of(content, allowed), f"page {page} of {name} is {what}"


def neighbours(pages: set[int]) -> Iterator[tuple[int, int]]:
    """Pages as ranges."""
    for first in sorted(page for page in pages if page - 1 not in pages):
        end = first
        while end in pages:
            end += 1
        yield first, end


def crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int, states: int) -> None:
    recording = Recording(tmp_path, monkeypatch, seed, steps)
    chance = Random(seed)
    target, run = tmp_path / "crashed", tmp_path / "new-run"
    for number, (disk, before, after, position) in enumerate(recording.crashes(chance, states)):
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
        disk.crash(chance, target)
        try:
            examine(target, run, before, after, chance)
        except Exception as error:
            raise AssertionError(f"--seed={seed}, state {number}, after {position} changes: {error!r}") from error


@pytest.mark.timeout(300)  # it takes half a minute, and more beside other work
def test_what_was_flushed_survives_a_power_loss(
    tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in seeds:
        for part in range(PARTS):
            crash(tmp_path, monkeypatch, seed * 1000 + part, STEPS, STATES)


class Contents:
    """Three processes put content blocks, and one may work while another is in the middle of syncing."""

    def __init__(self, store: Path, tap: Tap, patch: pytest.MonkeyPatch, chance: Random) -> None:
        create_store(store)
        self._stores = [open_store(store) for _ in range(3)]
        self._put: dict[int, set[bytes]] = {number: set() for number in range(3)}
        self._blocks = [chance.randbytes(chance.choice((1, SECTOR, 3 * PAGE, 5000))) for _ in range(4)]
        self._tap = tap
        self._chance = chance
        self._nested = False
        self._syncing = -1
        self.safe: frozenset[bytes] = frozenset()

        patch.setattr(file_system, "syncfs", lambda _descriptor: self._sync())

    def _sync(self) -> None:
        if not self._nested and self._chance.random() < 0.7:
            self._nested = True
            others = [number for number in range(3) if number != self._syncing]
            for _ in range(self._chance.randrange(6)):
                self.step(self._chance.choice(others))
            self._nested = False
        self._tap.sync_all()

    def step(self, number: int) -> None:
        store = self._stores[number]
        if self._chance.random() < 0.6:
            data = self._chance.choice(self._blocks)
            digest = hashlib.sha256(data).digest()
            store.put_content(digest, memoryview(data))
            self._put[number].add(digest)
        else:
            done, self._put[number] = self._put[number], set()
            if not self._nested:
                self._syncing = number
            store.sync_contents()
            self.safe |= done
            self._tap.events.append(self.safe)


def test_content_has_its_name_only_when_it_is_durable(
    tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "crashed"
    for seed in (10 * first + part for first in seeds for part in range(10)):
        chance = Random(seed)
        store = tmp_path / f"store{seed}"
        store.mkdir()
        with monkeypatch.context() as patch:
            tap = Tap(store, patch)
            contents = Contents(store, tap, patch, chance)
            tap.sync_all()
            began = len(tap.events)
            for _ in range(30):
                contents.step(chance.randrange(3))
        disk, safe = Disk(tap.root), frozenset[bytes]()
        for position, event in enumerate(tap.events):
            if isinstance(event, frozenset):
                safe = event
            else:
                disk.happens(event)
            if position >= began and (isinstance(event, frozenset) or chance.random() < 0.1):
                shutil.rmtree(target, ignore_errors=True)
                disk.crash(chance, target)
                check_contents(open_store(target), safe, f"--seed={seed // 10}, change {position}")


def check_contents(store: FilesStore, safe: frozenset[bytes], when: str) -> None:
    found = {digest for digest, _ in store.contents()}
    assert safe <= found, f"{when}: a block that was synced is not there"
    for digest in found:
        buffer = bytearray(4 * PAGE)
        store.layer(Source(digest, 0)).readinto(0, 0, memoryview(buffer))
        lengths = (1, SECTOR, 3 * PAGE, 5000)
        assert any(hashlib.sha256(buffer[:length]).digest() == digest for length in lengths), f"{when}: it is torn"


def forget_data(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FileLayer, "sync", lambda self: None)


def forget_names(patch: pytest.MonkeyPatch) -> None:
    for module in (files, files_store, file_layers):
        patch.setattr(module, "fsync_directory", lambda path: None)


def forget_layers(patch: pytest.MonkeyPatch) -> None:
    """The bytes of a new layer are on the disk, and its name is not."""
    patch.setattr(FileLayer, "sync", lambda layer: os.fdatasync(layer._data))


def marks_first(patch: pytest.MonkeyPatch) -> None:
    """Pages are called owned on the disk before their data is there."""
    sync, save = FileLayer.sync, FileLayer.save_pages
    patch.setattr(FileLayer, "sync", lambda self: None)

    def both(layer: FileLayer, pages: Any) -> None:
        save(layer, pages)
        sync(layer)

    patch.setattr(FileLayer, "save_pages", both)


def maps_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    real = files.write_atomically

    def careless(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
        real(path, data, mode=mode, durable=False)

    patch.setattr(files_store, "write_atomically", careless)


@pytest.mark.parametrize("careless", [forget_data, forget_names, forget_layers, marks_first, maps_in_the_cache])
def test_a_careless_store_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, careless: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with monkeypatch.context() as patch:
        careless(patch)
        with pytest.raises(AssertionError, match="--seed="):
            crash(tmp_path, patch, 1, STEPS, STATES)

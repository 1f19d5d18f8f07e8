# SPDX-License-Identifier: BSD-2-Clause
"""Two commands over one RADOS: before each operation of one of them, the whole other one is done.

Chance seldom has an import just between two operations of a collection, where it must be safe; so here is all of it.
Some of these places are tried, `--seed=N` says which, and `--rounds=N` tries more; 128 rounds are all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest

# First of all: it sees to it that the program can be imported where python3-rados is missing.
from tests.unit.extstorage.test_rados_actors import LASTING  # isort: skip

from extstorage import catalog, gc, pithos_export, rados_store, scrub
from extstorage.errors import HeldError
from extstorage.hashing import hash_snapshot
from extstorage.images import import_from
from extstorage.names import BLOCK, PAGE
from extstorage.progress import untold
from extstorage.rados_store import RadosStore
from extstorage.session import Session
from extstorage.store import Info, Store
from ganeti_plugin.errors import Error
from tests.datapath.actors import Processes
from tests.datapath.checks import no_damage
from tests.datapath.tenants import BLOCKS, Blocks, Images, contents

#: Of how many places one is tried in a round.
STRIDE = 128

Effect = dict[str, Blocks | None]
Command = Callable[[Store, Path], Effect]


def blocks(*kinds: int) -> Blocks:
    return [bytes([kind]) * PAGE for kind in kinds]


ONE, OLD, NEW, VOL, SNAP = blocks(1, 2, 3), blocks(4, 4, 4), blocks(4, 1, 5), blocks(1, 7, 3), blocks(6, 2, 3)


def take_in(store: Store, name: str, content: Blocks) -> None:
    source = Images(Random(0))
    source.blocks_of = content
    import_from(store, name, source, {}, untold)


def collect(store: Store, _directory: Path) -> Effect:
    gc.collect(store)
    return {}


def image(store: Store, _directory: Path) -> Effect:
    """A block of it is garbage at first, and one is new."""
    take_in(store, "new", NEW)
    return {"new": NEW}


def same_image(store: Store, _directory: Path) -> Effect:
    take_in(store, "other", NEW)
    return {"other": NEW}


def remove_image(store: Store, _directory: Path) -> Effect:
    catalog.remove(store, "one")
    return {"one": None}


def remove_volume(store: Store, _directory: Path) -> Effect:
    catalog.remove(store, "vol")
    return {"vol": None}


def hash_it(store: Store, _directory: Path) -> Effect:
    hash_snapshot(store, "snap", untold)
    return {}


def repair(store: Store, _directory: Path) -> Effect:
    scrub.scrub(store, lambda _done, _all: None, repair=True)
    return {}


def export(store: Store, directory: Path) -> Effect:
    pithos_export.export(store, "one", directory, untold)
    return {}


def clone(store: Store, _directory: Path) -> Effect:
    catalog.create_volume(store, "clone", BLOCKS * BLOCK, origin="snap")
    return {"clone": SNAP}


def snapshot(store: Store, _directory: Path) -> Effect:
    session = Session(store, "vol")
    session.snapshot("snap2", Info(created=0.0))
    session.shutdown()
    return {"snap2": VOL}


COMMANDS: tuple[Command, ...] = (
    collect,
    image,
    same_image,
    remove_image,
    remove_volume,
    hash_it,
    repair,
    export,
    clone,
    snapshot,
)


def prepare(store: Store) -> dict[str, Blocks]:
    take_in(store, "one", ONE)
    take_in(store, "old", OLD)
    catalog.remove(store, "old")
    catalog.create_volume(store, "vol", BLOCKS * BLOCK, origin="one")
    for content, change in ((SNAP, "snap"), (VOL, "")):
        session = Session(store, "vol")
        session.write(memoryview(b"".join(content[:1])), 0)
        session.write(memoryview(content[1]), BLOCK)
        if change:
            session.snapshot(change, Info(created=0.0))
        session.shutdown()
    return {"one": ONE, "vol": VOL, "snap": SNAP}


class Pair:
    """One command, and another one that comes before its operation `place`."""

    def __init__(self, first: Command, second: Command, place: int, patch: pytest.MonkeyPatch, directory: Path) -> None:
        # Always the same, so that each place is one of the same way.
        self._processes = Processes(1)
        self._processes.patched(patch)
        # Who is in the way does not go before the other one has ended.
        patch.setattr(rados_store, "LOCK_TIMEOUT", 0.5)
        self._directory = directory
        self._expected: dict[str, list[Blocks | None]] = {}
        self._first, self._second, self._place = first, second, place
        self._stores = [self._processes.open(), self._processes.open("other")]
        for name, content in prepare(self._processes.open()).items():
            self._expected[name] = [content]

    def run(self) -> bool:
        """Answers whether the place was reached."""
        cluster = self._processes.cluster
        address, passed, turn = self._stores[0]._client.address, count(), cluster.turn

        def before(who: str) -> None:
            if who == address and next(passed) == self._place:
                self._do(self._second, self._stores[1])

        cluster.turn = before
        self._do(self._first, self._stores[0])
        cluster.turn = turn
        self._check()
        return next(passed) > self._place

    def _do(self, command: Command, store: RadosStore) -> None:
        begun = {one: list(contents) for one, contents in self._expected.items()}
        try:
            effect = command(store, self._directory / command.__name__)
        except Error:
            effect = {}
            # What it would have done may be done.
            for name, content in EFFECTS[command].items():
                self._expected[name] = [*begun.get(name, [None]), content]
        for name, after in effect.items():
            self._expected[name] = [after]

    def _check(self) -> None:
        after = self._processes.open()
        for _ in range(2):
            for name, allowed in self._expected.items():
                found = contents(after, name)
                assert found in allowed, name
            no_damage(after)
            gc.collect(after)
        for name in after.names():
            catalog.remove(after, name)
        gc.collect(after)
        assert not [key for key in self._processes.cluster.things if key.partition(".")[0] in LASTING]


EFFECTS: dict[Command, Effect] = {
    image: {"new": NEW},
    same_image: {"other": NEW},
    remove_image: {"one": None},
    remove_volume: {"vol": None},
    clone: {"clone": SNAP},
    snapshot: {"snap2": VOL},
    **{command: {} for command in (collect, hash_it, repair, export)},
}


def places(seeds: list[int], number: int) -> Iterator[int]:
    return (place for place in count() if any((place + number - seed) % STRIDE == 0 for seed in seeds))


@pytest.mark.parametrize("first", COMMANDS)
def test_a_command_in_the_middle_of_another(
    tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch, first: Command
) -> None:
    for number, second in enumerate(COMMANDS):
        for place in places(seeds, number):
            with monkeypatch.context() as patch:
                try:
                    is_reached = Pair(first, second, place, patch, tmp_path / f"{second.__name__}{place}").run()
                except Exception as error:
                    told = f"{second.__name__} before operation {place} of {first.__name__}"
                    raise AssertionError(f"{told}: {error!r}") from error
                if not is_reached:
                    break


def test_names_that_move_from_map_to_map_are_never_out_of_sight(
    seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between operations of a collection, another map gets all that a snapshot names, and the snapshot goes."""
    for seed in seeds:
        with monkeypatch.context() as patch:
            move_during_a_collection(seed, patch)


def move_during_a_collection(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(seed)
    processes.patched(monkeypatch)
    monkeypatch.setattr(rados_store, "LOCK_TIMEOUT", 0.5)
    collector, mover = processes.open(), processes.open("other")
    prepare(mover)
    for name in ("one", "vol"):
        catalog.remove(mover, name)
    cluster, turn = processes.cluster, processes.cluster.turn
    names = ["snap"]

    def move() -> None:
        name = f"snap{len(names)}"
        catalog.create_volume(mover, f"{name}-clone", BLOCKS * BLOCK, origin=names[-1])
        session = Session(mover, f"{name}-clone")
        session.snapshot(name, Info(created=0.0))
        session.shutdown()
        names.append(name)
        for gone in (f"{name}-clone", names[-2]):
            catalog.remove(mover, gone)

    def before(who: str) -> None:
        if who == collector._client.address and processes.chance.random() < 0.3:
            with contextlib.suppress(HeldError):
                move()

    cluster.turn = before
    gc.collect(collector)
    cluster.turn = turn
    assert len(names) > 5
    assert contents(mover, names[-1]) == SNAP, f"--seed={seed}"
    no_damage(mover)

# SPDX-License-Identifier: BSD-2-Clause
"""The generator over the stores that need nothing. `--seed=N` repeats a failure, `--rounds=N` goes on for longer."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from extstorage.files_store import create_store, open_store
from extstorage.store import Store
from tests.datapath.generator import Generator, World
from tests.datapath.memory_store import MemoryStore
from tests.datapath.tap import Reaper, Saboteur, Tap

STEPS = 600


class MemoryWorld(World):
    atomic = False

    def __init__(self, directory: Path) -> None:
        self._store = MemoryStore(atomic=self.atomic)

    def open(self) -> Store:
        return self._store

    def lose_power(self, chance: Random) -> None:
        self._store.die(chance)


class AtomicWorld(MemoryWorld):
    """Bitmaps change together with data, as in RADOS."""

    atomic = True


class FilesWorld(World):
    def __init__(self, directory: Path) -> None:
        self._directory = directory / "store"
        create_store(self._directory)

    def open(self) -> Store:
        return open_store(self._directory)


@pytest.mark.parametrize("world", [MemoryWorld, AtomicWorld, FilesWorld])
def test_everything_reads_as_the_model(tmp_path: Path, seeds: list[int], world: type[MemoryWorld | FilesWorld]) -> None:
    for seed in seeds:
        directory = tmp_path / str(seed)
        directory.mkdir()
        Generator(world(directory), directory / "run", seed).run(STEPS)


@pytest.mark.parametrize("reaper", [Reaper, Saboteur])
def test_what_was_acknowledged_survives_the_death_of_the_process_at_any_change(
    tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch, reaper: type[Reaper]
) -> None:
    for seed in seeds:
        directory = tmp_path / str(seed)
        directory.mkdir()
        with monkeypatch.context() as patch:
            generator_reaper = reaper()
            Tap(directory, patch, generator_reaper)
            generator = Generator(FilesWorld(directory), directory / "run", seed)
            generator.reaper = generator_reaper
            generator_reaper.aim(100)
            generator.run(STEPS // 2)

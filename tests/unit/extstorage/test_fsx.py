# SPDX-License-Identifier: BSD-2-Clause
"""The generator over the stores that need nothing. `--seed=N` repeats a failure, `--rounds=N` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from extstorage.files_store import create_store, open_store
from extstorage.memory_store import MemoryStore
from extstorage.session import Session
from extstorage.store import Store
from tests.datapath.generator import Generator

STEPS = 1000


class MemoryWorld:
    def __init__(self, directory: Path) -> None:
        self._store = MemoryStore()

    def open(self) -> Store:
        return self._store

    def kill(self, session: Session) -> None:
        assert session._lock is not None
        session._lock.release()


class FilesWorld:
    def __init__(self, directory: Path) -> None:
        self._directory = directory / "store"
        create_store(self._directory)

    def open(self) -> Store:
        return open_store(self._directory)

    def kill(self, session: Session) -> None:
        assert session._lock is not None
        session._lock.release()


@pytest.mark.parametrize("world", [MemoryWorld, FilesWorld])
def test_everything_reads_as_the_model(tmp_path: Path, seeds: list[int], world: type[MemoryWorld | FilesWorld]) -> None:
    for seed in seeds:
        directory = tmp_path / str(seed)
        directory.mkdir()
        Generator(world(directory), directory / "run", seed).run(STEPS)

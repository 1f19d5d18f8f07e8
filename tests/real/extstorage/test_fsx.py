# SPDX-License-Identifier: BSD-2-Clause
"""The generator over RADOS, and through NBD. `--seed=N` repeats a failure, `--rounds=N` goes on for longer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extstorage.rados_locks import Identity, machine
from extstorage.rados_store import RadosStore, create_store
from extstorage.session import Session
from extstorage.store import Store
from extstorage.stores import RadosSpec
from tests.datapath.generator import Generator

pytestmark = pytest.mark.timeout(300)

STEPS = 400
DEADLINE = 30.0


class RadosWorld:
    """Each process that opens the store is a client of its own, under the name of a process that can be killed."""

    def __init__(self, spec: RadosSpec) -> None:
        self._spec = spec
        create_store(spec).close()
        self._processes: dict[int, tuple[RadosStore, subprocess.Popen[bytes]]] = {}

    def open(self) -> Store:
        process = subprocess.Popen(["sleep", "600"])
        start = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        store = RadosStore(self._spec, DEADLINE, Identity("node", machine(), process.pid, start))
        self._processes[id(store)] = store, process
        return store

    def kill(self, session: Session) -> None:
        _, process = self._processes[id(session._store)]
        process.kill()
        process.wait()

    def end(self, store: Store) -> None:
        found, process = self._processes.pop(id(store))
        found.close()
        process.kill()
        process.wait()

    def close(self) -> None:
        for store, _ in list(self._processes.values()):
            self.end(store)


@pytest.fixture
def world(new_spec: Callable[..., RadosSpec]) -> Iterator[RadosWorld]:
    found = RadosWorld(new_spec(lease="2"))
    yield found
    found.close()


def test_rados_reads_as_the_model(tmp_path: Path, seeds: list[int], world: RadosWorld) -> None:
    for seed in seeds:
        Generator(world, tmp_path / str(seed), seed).run(STEPS)

# SPDX-License-Identifier: BSD-2-Clause
"""The generator over RADOS, and through NBD. `--seed=N` repeats a failure, `--rounds=N` goes on for longer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from extstorage import specs, stores
from extstorage.rados_locks import Identity, machine
from extstorage.rados_store import RadosStore, create_store
from extstorage.session import Session
from extstorage.specs import RadosSpec
from extstorage.store import Store
from tests.datapath.generator import WEIGHTS, Generator, World
from tests.datapath.nbd_server import NbdSession

pytestmark = pytest.mark.timeout(300)

STEPS = 300
NBD_STEPS = 140
DEADLINE = 30.0

_numbers = count()


class RadosWorld(World):
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


class NbdWorld(World):
    """Each server is a process: nbdkit with our plugin, and several connections to it."""

    def __init__(self, spec: str, directory: Path) -> None:
        self._spec = spec
        self._directory = directory
        self._runs = count()
        self._servers: list[NbdSession] = []
        stores.open_store(specs.parse(spec), make=True)

    def open(self) -> Store:
        return stores.open_store(specs.parse(self._spec))

    def serve(self, name: str, run: Path | None) -> Session:
        if run is None:
            run = self._directory / f"other{next(self._runs)}"
            run.mkdir()
        self._servers.append(NbdSession(self._spec, name, run))
        return self._servers[-1]

    def kill(self, session: Session) -> None:
        assert isinstance(session, NbdSession)
        session.kill()

    def close(self) -> None:
        for server in self._servers:
            if server.process.poll() is None:
                server.kill()


@pytest.fixture(params=["files", "rados"])
def nbd_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NbdWorld]:
    if request.param == "files":
        spec = f"files:{tmp_path}/store"
    else:
        spec = request.getfixturevalue("ceph").spec(f"nbd{next(_numbers)}", lease="2")
    found = NbdWorld(spec, tmp_path)
    yield found
    found.close()


def test_nbd_reads_as_the_model(tmp_path: Path, seeds: list[int], nbd_world: NbdWorld) -> None:
    """Fewer of the steps that start a server."""
    for seed in seeds:
        generator = Generator(nbd_world, tmp_path / f"run{seed}", seed)
        generator.weights = WEIGHTS | dict.fromkeys(("restart", "kill", "hand_over", "clone"), 1) | {"meddle": 0.5}
        generator.run(NBD_STEPS)

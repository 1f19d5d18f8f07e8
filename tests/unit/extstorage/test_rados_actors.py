# SPDX-License-Identifier: BSD-2-Clause
"""The store in RADOS without a RADOS: random histories, deaths at any operation, and several processes at once.

`--seed=N` repeats a failure, `--rounds=N` goes on for longer.
"""

from __future__ import annotations

import errno
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.datapath import fake_rados

if find_spec("rados") is None:
    # The program can be imported where python3-rados is missing, which these tests don't need.
    sys.modules["rados"] = fake_rados

from extstorage import catalog, gc, maps
from extstorage.errors import UnreachableStoreError
from extstorage.names import BLOCK
from extstorage.rados_errors import ChangedObjectError
from extstorage.rados_store import RadosStore
from extstorage.session import Session
from extstorage.store import Store
from tests.datapath.actors import Processes
from tests.datapath.checks import no_damage
from tests.datapath.fake_rados import Error, Ioctx, WriteOp
from tests.datapath.generator import Generator, World
from tests.datapath.tap import Killed
from tests.datapath.tenants import Blocks, Tenant

STEPS = 200
PARTS = 12
ACTIONS = 12

#: Objects of which none is left when all names are gone.
LASTING = ("head", "body", "index", "data", "content", "lock")


class RadosWorld(World):
    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def open(self) -> Store:
        return self._processes.open()

    def kill(self, session: Session) -> None:
        assert isinstance(session._store, RadosStore)
        self._processes.kill(session._store)


class Mortal(Generator):
    """The process of its commands dies, too."""

    def recover(self) -> None:
        assert self.reaper is not None
        self.reaper.revive()
        assert isinstance(self.world, RadosWorld)
        assert isinstance(self.store, RadosStore)
        self.world._processes.kill(self.store)
        self.store = self.world.open()
        super().recover()


def test_everything_reads_as_the_model(tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in seeds:
        processes = Processes(seed)
        processes.patched(monkeypatch)
        Generator(RadosWorld(processes), tmp_path / str(seed), seed).run(STEPS)


def test_what_was_acknowledged_survives_the_death_of_the_process_at_any_operation(
    tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in seeds:
        processes = Processes(seed)
        processes.patched(monkeypatch)
        generator = Mortal(RadosWorld(processes), tmp_path / str(seed), seed)
        generator.reaper = processes.reaper
        processes.reaper.aim(100)
        generator.run(STEPS)


def live(seed: int, patch: pytest.MonkeyPatch) -> None:
    """Three processes on two nodes; one of them is killed, others may hang for so long that they are taken over."""
    processes = Processes(seed)
    processes.patched(patch)
    first = processes.open()
    common: dict[str, Blocks] = {}
    nodes = {"a": "node", "b": "node", "c": "other"}
    tenants = [Tenant(name, processes.open(node), processes.chance, common) for name, node in nodes.items()]
    focused = processes.chance.random() < 0.3
    for tenant in tenants:
        tenant.only_images = focused
    actors = processes.run(
        [(tenant.name, partial(tenant.work, ACTIONS)) for tenant in tenants],
        deaths=processes.chance.choice(("", "a", "c")),
    )
    try:
        for actor in actors:
            if actor.fate is not None and not isinstance(actor.fate, Killed):
                raise actor.fate
        after = processes.open()
        for tenant in tenants:
            tenant.check(after)
        no_damage(after)
        gc.collect(after)
        for tenant in tenants:
            tenant.check(after)
        assert sorted(after.names()) == after.possible_names()
        for name in after.names():
            catalog.remove(after, name)
        gc.collect(after)
        left = {key for key in processes.cluster.things if key.partition(".")[0] in LASTING}
        # A block that somebody had sent before he died may come after its entry was found to be vain.
        assert not left - {key for key in processes.cluster.late if key.startswith("content.")}
    except Exception as error:
        told = "\n".join(f"{tenant.name}: {one}" for tenant in tenants for one in tenant.done)
        raise AssertionError(f"--seed={seed}: {error!r}\n{told}") from error
    first.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_several_processes_at_once(seeds: list[int], monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    for seed in seeds:
        live(seed * PARTS + part, monkeypatch)


def test_a_change_that_arrives_late_finds_the_body_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender had no answer, and somebody tries again."""
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    catalog.create_volume(store, "vol", BLOCK)
    old = store.read_map("vol")
    first, second = maps.grow(old, 2 * BLOCK), maps.grow(old, 3 * BLOCK)
    real = Ioctx.operate_write_op

    def late(self: Ioctx, op: WriteOp, key: str, flags: int = 0) -> None:
        if key == "head.vol":
            processes.cluster.arrives_later("somebody", key, op)
            raise Error(errno.ETIMEDOUT)
        real(self, op, key, flags)

    def meanwhile(self: Ioctx, op: WriteOp, key: str, flags: int = 0) -> None:
        if key == "head.vol":
            processes.cluster.let_arrive()
        real(self, op, key, flags)

    with monkeypatch.context() as patch:
        patch.setattr(Ioctx, "operate_write_op", late)
        with pytest.raises(UnreachableStoreError):
            store.write_map("vol", first)
        patch.setattr(Ioctx, "operate_write_op", meanwhile)
        with pytest.raises(ChangedObjectError):
            store.write_map("vol", second)
    assert store.read_map("vol") == first
    store.write_map("vol", second)
    assert store.read_map("vol") == second
    assert len({key.split(".")[1] for key in processes.cluster.things if key.startswith("body.")}) == 1

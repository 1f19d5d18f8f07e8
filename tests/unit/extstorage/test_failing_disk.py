# SPDX-License-Identifier: BSD-2-Clause
"""The files store on a disk that fails: full, over quota, with errors when it syncs, read-only from some moment on.

Whatever command it hits: what was acknowledged and flushed is there, also after a power loss. What is not sound says
so. Nothing is left behind that a collection does not clear. `--seed=N` repeats a failure, `--rounds=N` goes on.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import pytest

from extstorage import catalog, file_contents, file_layers, files_store, fsck, gc
from extstorage.errors import DoubtfulError
from extstorage.files_store import FilesStore, create_store, open_store
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.session import Session
from extstorage.store import Info
from ganeti_plugin.files import fsync_directory
from tests.datapath.checks import no_damage
from tests.datapath.powerloss import Disk
from tests.datapath.tap import FailingDisk, Tap
from tests.datapath.tenants import BLOCKS, ZEROS, Blocks, Tenant, contents, serving

PARTS = 7
ACTIONS = 20

#: What may fail, with which errors.
_FULL = dict.fromkeys(("make", "write", "rename"), errno.ENOSPC)
_QUOTA = dict.fromkeys(("make", "write", "rename"), errno.EDQUOT)
_SYNC = {"sync": errno.EIO}
_ALL = dict.fromkeys(("make", "write", "rename", "remove", "sync", "punch"), errno.EIO)
_READ_ONLY = dict.fromkeys(("make", "write", "rename", "remove", "punch"), errno.EROFS)
#: And whether it goes on failing once it began.
KINDS = (
    (_FULL, False),
    (_FULL, True),
    (_QUOTA, False),
    (_SYNC, False),
    (_SYNC, False),
    (_ALL, False),
    (_READ_ONLY, True),
)


class Sufferer(Tenant):
    """One whose disk fails now and then. What failed may be lost with the power, until it is acknowledged."""

    def __init__(self, directory: Path, chance: Random) -> None:
        super().__init__("a", open_store(directory), open_store(directory), chance, {})
        self.unsure: dict[str, list[Blocks | None]] = {}
        self._path = directory

    def suspect(self, doubt: Mapping[str, Sequence[Blocks | None]]) -> None:
        for name, allowed in doubt.items():
            self.unsure[name] = [*self.unsure.get(name, []), *allowed]
        if self.chance.random() < 0.5:
            self.store = self.server = open_store(self._path)

    def assure(self, doubt: Mapping[str, Sequence[Blocks | None]], *, durable: bool) -> None:
        for name in [name for name in doubt if name in self.unsure]:
            self.unsure[name] += doubt[name]
            if durable:
                del self.unsure[name]

    @property
    def certain(self) -> dict[str, Blocks]:
        found = {**self.volumes, **self.snapshots}
        return {name: blocks for name, blocks in found.items() if name not in self.unsure and name not in self.doubt}


def suffer(seed: int, directory: Path, patch: pytest.MonkeyPatch) -> None:
    chance = Random(seed)
    kinds, lasts = KINDS[seed % len(KINDS)]
    path, target = directory / "store", directory / "crashed"
    path.mkdir(parents=True)
    failing = FailingDisk(chance, kinds, chance.choice((0.003, 0.02)), lasts=lasts)
    failing.mend()
    tap = Tap(path, patch, failing)
    disk, seen = Disk(tap.root), 0
    create_store(path)
    tenant = Sufferer(path, chance)
    failing.break_again()
    try:
        for _ in range(ACTIONS):
            tenant.step()
            if failing.is_failing and chance.random() < 0.3:
                failing.break_again()
            for event in tap.events[seen:]:
                disk.happens(event)
            seen = len(tap.events)
            if chance.random() < 0.15:
                failing.mend()
                shutil.rmtree(target, ignore_errors=True)
                disk.crash(chance, target)
                after_power_loss(open_store(target), tenant)
                failing.break_again()
        failing.mend()
        after_all(open_store(path), tenant)
    except Exception as error:
        told = "\n".join(tenant.done)
        raise AssertionError(f"--seed={seed // PARTS}, {seed}: {error!r}\n{told}") from error


def after_power_loss(store: FilesStore, tenant: Sufferer) -> None:
    for name, blocks in tenant.certain.items():
        assert contents(store, name) == blocks, f"{name} lost with the power what was acknowledged"
    for name, allowed in tenant.unsure.items():
        found = contents(store, name)
        if found is not None:
            for number, block in enumerate(found):
                sectors = {one[number][:SECTOR] for one in allowed if one is not None}
                assert {block[at : at + SECTOR] for at in range(0, PAGE, SECTOR)} <= {*sectors, bytes(SECTOR)}, name
    doubtful = {name for name in store.names() if store.loss(name)}
    assert {finding.name for finding in fsck.check(store, repair=True) if finding.damage} <= doubtful
    no_damage(store)
    clear(store)


def after_all(store: FilesStore, tenant: Sufferer) -> None:
    tenant.check(store)
    doubtful = [name for name in store.names() if store.loss(name)]
    for name in doubtful:
        session = Session(store, name)
        with pytest.raises(DoubtfulError):
            session.open(True)
    named = {finding.name for finding in fsck.check(store, repair=True) if finding.damage}
    assert named == set(doubtful)
    no_damage(store)
    tenant.check(store)
    clear(store)


def clear(store: FilesStore) -> None:
    """Nothing is left when all names are gone, and a day has passed."""
    for name in store.names():
        catalog.remove(store, name)
    gc.collect(store)
    with pytest.MonkeyPatch.context() as patch:
        for module in (file_contents, file_layers):
            patch.setattr(module, "_DAY", -60)
        gc.collect(store)
    path = Path(store.title)
    left = [str(one.relative_to(path)) for one in path.rglob("*") if one.is_file() and one.parent != path]
    assert left in ([], ["content/lock"]), left
    assert not os.listdir(path / "maps")
    assert not os.listdir(path / "data")


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_fails_nothing_is_lost_that_was_acknowledged(
    tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    for seed in seeds:
        with monkeypatch.context() as patch:
            suffer(seed * PARTS + part, tmp_path / str(seed), patch)


@pytest.mark.parametrize("how", ["create", "clone", "rename"])
def test_a_name_that_was_not_durable_is_made_so_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It is there, and the sync of its folder failed. Who asked for it tries again, or goes on with what is there."""
    (tmp_path / "store").mkdir()
    tap = Tap(tmp_path / "store", monkeypatch)
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "origin", BLOCKS * BLOCK)
    with serving(store, "origin") as session:
        session.snapshot("snap", Info(created=0.0))

    def work() -> None:
        if how == "rename":
            catalog.adopt(store, "origin", "vol", BLOCKS * BLOCK)
        else:
            catalog.create_volume(store, "vol", BLOCKS * BLOCK, origin="snap" if how == "clone" else "")

    sync = fsync_directory

    def fails(path: Path) -> None:
        if path.name == "maps":
            raise OSError(errno.EIO, "bad disk")
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files_store, "fsync_directory", fails)
        with pytest.raises(OSError, match="bad disk"):
            work()
    if how != "rename":
        work()
        assert contents(lost_power(tap, tmp_path, 0), "vol") == ZEROS
    with serving(store, "vol") as session:
        session.write(memoryview(b"x" * PAGE), BLOCK)
    for seed in range(20):
        assert contents(lost_power(tap, tmp_path, seed), "vol") == [ZEROS[0], b"x" * PAGE, ZEROS[2]]


def lost_power(tap: Tap, directory: Path, seed: int) -> FilesStore:
    disk = Disk(tap.root)
    for event in tap.events:
        disk.happens(event)
    shutil.rmtree(directory / "crashed", ignore_errors=True)
    disk.crash(Random(seed), directory / "crashed")
    return open_store(directory / "crashed")

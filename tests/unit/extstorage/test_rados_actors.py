# SPDX-License-Identifier: BSD-2-Clause
"""The store in RADOS without a RADOS: random histories, deaths at any operation, and several processes at once.

`--seed=N` repeats a failure, `--rounds=N` goes on for longer.
"""

from __future__ import annotations

import errno
import hashlib
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.datapath import fake_rados

if find_spec("rados") is None:
    # The program can be imported where python3-rados is missing, which these tests don't need.
    sys.modules["rados"] = fake_rados

from extstorage import catalog, fsck, gc, maps, scrub, session
from extstorage.errors import BrokenError, UnreachableStoreError
from extstorage.images import import_from
from extstorage.maps import Source
from extstorage.names import BLOCK, PAGE
from extstorage.progress import untold
from extstorage.rados_errors import ChangedObjectError
from extstorage.rados_store import RadosStore
from extstorage.session import Session
from extstorage.store import Info, Store
from extstorage.volume import Volume
from tests.datapath.actors import Processes
from tests.datapath.checks import no_damage, read
from tests.datapath.fake_rados import Error, Ioctx, WriteOp
from tests.datapath.generator import Generator, World
from tests.datapath.tap import Killed
from tests.datapath.tenants import KINDS, Blocks, Images, Tenant

STEPS = 200
PARTS = 12
ACTIONS = 12

#: How many of the schedules are of images only.
FOCUSED = 0.3

#: What goes wrong, and how often an operation meets it.
MISHAPS: tuple[dict[str, float], ...] = (
    {},
    {"unanswered": 0.003},
    {"unanswered": 0.02},
    {"full": 0.05},
    {"unread": 0.005},
    {"shut out": 0.002},
    {"unanswered": 0.005, "full": 0.01, "unread": 0.001, "shut out": 0.001},
)

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


def tenant(processes: Processes, name: str, node: str, common: dict[str, Blocks]) -> Tenant:
    store = processes.open(node, deadline=60.0)
    return Tenant(name, store, processes.open(node, beside=store), processes.chance, common)


def spoil(processes: Processes) -> None:
    """One bit of one content block."""
    keys = sorted(key for key in processes.cluster.things if key.startswith("content."))
    if keys:
        processes.cluster.things[processes.chance.choice(keys)][0].data[0] ^= 1


def heal(store: Store) -> None:
    """What is wrong goes, and an image that has the same blocks brings them back."""
    scrub.scrub(store, lambda _done, _all: None, repair=True)
    source = Images(Random(0))
    source.blocks_of = [bytes([kind]) * PAGE for kind in KINDS]
    import_from(store, "healer", source, {}, untold)
    assert not scrub.scrub(store, lambda _done, _all: None).damage


def live(seed: int, patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Three processes on two nodes; one of them is killed, others may hang for so long that they are taken over."""
    processes = Processes(seed)
    processes.patched(patch)
    first = processes.open()
    common: dict[str, Blocks] = {}
    nodes = {"a": "node", "b": "node", "c": "other"}
    tenants = [tenant(processes, name, node, common) for name, node in nodes.items()]
    focused = processes.chance.random() < FOCUSED
    spoilt = focused and processes.chance.random() < 0.3
    for one in tenants:
        one.only_images = focused
        one.directory = directory / str(seed)
        one.spoil = partial(spoil, processes) if spoilt else None
    processes.mishaps.rates = processes.chance.choice(MISHAPS)
    actors = processes.run(
        [(one.name, partial(one.work, ACTIONS)) for one in tenants],
        deaths=processes.chance.choice(("", "a", "c")),
    )
    try:
        for actor in actors:
            if actor.fate is not None and not isinstance(actor.fate, Killed):
                raise actor.fate
        after = processes.open()
        if spoilt:
            heal(after)
        for one in tenants:
            one.check(after)
        no_damage(after)
        gc.collect(after)
        for one in tenants:
            one.check(after)
        assert sorted(after.names()) == after.possible_names()
        for name in after.names():
            catalog.remove(after, name)
        gc.collect(after)
        left = {key for key in processes.cluster.things if key.partition(".")[0] in LASTING}
        assert not left
    except Exception as error:
        told = "\n".join(f"{one.name}: {text}" for one in tenants for text in one.done)
        raise AssertionError(f"--seed={seed}: {error!r}\n{told}") from error
    first.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_several_processes_at_once(
    tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    for seed in seeds:
        live(seed * PARTS + part, monkeypatch, tmp_path)


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


DATA = b"x" * 4096
DIGEST = hashlib.sha256(DATA).digest()
KEY = f"content.{DIGEST.hex()}"


def put_too_late(processes: Processes, store: RadosStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts the block gets no answer and gives up, and no map names it; but it is sent."""
    real = Ioctx.operate_write_op

    def late(self: Ioctx, op: WriteOp, key: str, flags: int = 0) -> None:
        if key == KEY:
            processes.cluster.arrives_later("somebody", key, op)
            raise Error(errno.ETIMEDOUT)
        real(self, op, key, flags)

    with monkeypatch.context() as patch:
        patch.setattr(Ioctx, "operate_write_op", late)
        with pytest.raises(UnreachableStoreError):
            store.put_content(DIGEST, memoryview(DATA))


def pass_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 25 * 3600
    monkeypatch.setattr("extstorage.rados_contents.time.time", lambda: later)


@pytest.mark.parametrize("also_by_others", [False, True])
def test_a_block_that_arrives_after_a_collection_looked_for_it_is_collected(
    monkeypatch: pytest.MonkeyPatch, also_by_others: bool
) -> None:
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    put_too_late(processes, store, monkeypatch)
    if also_by_others:
        assert store.put_content(DIGEST, memoryview(DATA))
    assert gc.collect(store).contents == also_by_others
    assert gc.collect(store).contents == 0
    processes.cluster.let_arrive()
    assert KEY in processes.cluster.things
    assert gc.collect(store).contents == 1
    assert KEY not in processes.cluster.things
    pass_a_day(monkeypatch)
    gc.collect(store)
    assert not any(thing.table for key, (thing, _) in processes.cluster.things.items() if key.startswith("contents."))


def test_a_block_that_arrives_late_and_is_needed_again_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    put_too_late(processes, store, monkeypatch)
    gc.collect(store)
    processes.cluster.let_arrive()
    store.create("image", maps.from_digests(BLOCK, bytes(16), [DIGEST]), Info(created=1.0, image=True))
    assert not store.put_content(DIGEST, memoryview(DATA))
    gc.collect(store)
    pass_a_day(monkeypatch)
    assert gc.collect(store).contents == 0
    assert not fsck.check(store)
    catalog.remove(store, "image")
    assert gc.collect(store).contents == 1


@pytest.mark.parametrize("is_named", [False, True])
def test_a_block_that_no_table_has_any_more_is_found_by_a_check(
    monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    """What is needed stays: the check only enters it again, and the collection decides."""
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    put_too_late(processes, store, monkeypatch)
    gc.collect(store)
    pass_a_day(monkeypatch)
    gc.collect(store)
    processes.cluster.let_arrive()
    if is_named:
        store.create("image", maps.from_digests(BLOCK, bytes(16), [DIGEST]), Info(created=1.0, image=True))
        assert not store.put_content(DIGEST, memoryview(DATA))
    assert gc.collect(store).contents == 0
    [found] = fsck.check(store)
    assert (found.text, found.repaired, found.damage) == (
        "1 content blocks are stored that no collection would find",
        "",
        False,
    )
    assert gc.collect(store).contents == 0
    assert fsck.check(store, repair=True)[0].repaired
    assert fsck.check(store) == []
    assert gc.collect(store).contents == (not is_named)
    assert (KEY in processes.cluster.things) is is_named
    if is_named:
        buffer = bytearray(4096)
        store.layer(Source(DIGEST, 0)).readinto(0, 0, memoryview(buffer))
        assert bytes(buffer) == DATA


def test_a_block_that_comes_while_it_is_removed_as_missing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    put_too_late(processes, store, monkeypatch)
    [(digest, version)] = store.contents()
    processes.cluster.let_arrive()
    assert store.remove_content(digest, version) == 0
    assert gc.collect(store).contents == 1


def test_a_walk_that_fails_is_said_and_one_that_ends_early_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    store.put_content(DIGEST, memoryview(DATA))
    store.create("image", maps.from_digests(BLOCK, bytes(16), [DIGEST]), Info(created=1.0, image=True))

    def failing(_io: Ioctx) -> None:
        raise Error(errno.ETIMEDOUT)

    with monkeypatch.context() as patch:
        patch.setattr(Ioctx, "list_objects", failing)
        with pytest.raises(UnreachableStoreError):
            fsck.check(store)
        patch.setattr(Ioctx, "list_objects", lambda _io: iter(()))
        assert fsck.check(store) == []
    assert fsck.check(store) == []


def test_a_missing_block_is_named_by_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    store.put_content(DIGEST, memoryview(DATA))
    gone = bytes(32)
    store.put_content(gone, memoryview(DATA))
    digests = [DIGEST, gone, DIGEST, gone, gone]
    store.create("image", maps.from_digests(5 * BLOCK, bytes(16), digests), Info(created=1.0, image=True))
    store.create("other", maps.from_digests(BLOCK, bytes(16), [DIGEST]), Info(created=1.0, image=True))
    assert not fsck.check(store)
    processes.cluster.things.pop(f"content.{gone.hex()}")
    for name in ("", "image"):
        [found] = fsck.check(store, name)
        assert (found.name, found.text, found.blocks) == ("image", "1 content blocks are missing", ((1, 1), (3, 4)))
        assert found.damage
    store.put_content(gone, memoryview(DATA))
    assert not fsck.check(store)


def test_a_lost_block_of_a_volume_is_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceph may have had to give an object up: what is below it is older than what was acknowledged."""
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    catalog.create_volume(store, "vol", 3 * BLOCK)
    writer = Session(store, "vol")
    for index in range(3):
        writer.write(memoryview(b"old" * 1000), index * BLOCK)
    writer.snapshot("snap", Info(created=0.0))
    for index in range(3):
        writer.write(memoryview(b"new" * 1000), index * BLOCK)
    writer.shutdown()
    looking = Session(processes.open(), "vol")
    looking.open(True)
    looking.shutdown()
    lost = max(key for key in processes.cluster.things if key.startswith("data."))
    assert lost.endswith("2")
    processes.cluster.things.pop(lost)
    reader = Session(processes.open(), "vol")
    reader.open(True)
    for _ in range(2):
        with pytest.raises(BrokenError, match=re.escape(lost)):
            read(reader, 2 * BLOCK, PAGE)
        with pytest.raises(BrokenError, match=re.escape(lost)):
            reader.write(memoryview(b"x" * PAGE), 2 * BLOCK)
        assert read(reader, BLOCK, 3000) == b"new" * 1000
        reader.write(memoryview(b"x" * PAGE), PAGE)


class Slow(dict[int, int]):
    """Between a question and what is done about the answer, another thread is faster."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume._owned)
        self._volume = volume

    def get(self, index: int, default: Any = None) -> Any:
        found = super().get(index, default)
        if index in self._volume._unread:
            self._volume._learn(index)
        return found


class Late(set[int]):
    """Another thread is interrupted where it takes the block out."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume._unread)
        self.look: Callable[[], None] = lambda: None

    def discard(self, element: object) -> None:
        assert isinstance(element, int)
        super().discard(element)
        self.look()


@pytest.mark.parametrize("meanwhile", ["learnt", "being learnt"])
def test_who_asks_what_a_block_has_while_another_one_learns_it_is_told(
    monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    catalog.create_volume(store, "vol", BLOCK)
    writer = Session(store, "vol")
    writer.write(memoryview(b"old" * 1000), 0)
    writer.snapshot("snap", Info(created=0.0))
    writer.write(memoryview(b"new" * 1000), 0)
    writer.shutdown()
    # Whoever opens it first finds out what is there.
    finder = Session(processes.open(), "vol")
    finder.open(True)
    finder.shutdown()
    reader = Session(processes.open(), "vol")
    reader.open(True)
    volume = reader._volume
    assert volume._unread == {0}
    found: list[int] = []
    if meanwhile == "learnt":
        volume._owned = Slow(volume)
    else:
        volume._unread = late = Late(volume)
        late.look = lambda: found.append(volume._owned_pages(0))
    found.append(volume._owned_pages(0))
    assert set(found) == {1}
    assert read(reader, 0, 3000) == b"new" * 1000


def test_a_late_change_of_one_who_gave_up_is_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that had no answer must not appear under the next writer, who knows nothing of its epoch."""
    processes = Processes(1)
    processes.patched(monkeypatch)
    command = processes.open()
    catalog.create_volume(command, "vol", 3 * BLOCK)
    writer = Session(processes.open(), "vol")
    writer.write(memoryview(b"old" * 1000), 0)
    writer.shutdown()
    real = Ioctx.operate_write_op

    def late(self: Ioctx, op: WriteOp, key: str, flags: int = 0) -> None:
        if key == "head.vol":
            processes.cluster.arrives_later(self._client.address, key, op)
            raise Error(errno.ETIMEDOUT)
        real(self, op, key, flags)

    with monkeypatch.context() as patch:
        patch.setattr(Ioctx, "operate_write_op", late)
        with pytest.raises(UnreachableStoreError):
            Session(command, "vol").snapshot("snap", Info(created=0.0))
    server = Session(processes.open(), "vol")
    server.write(memoryview(b"new" * 1000), BLOCK)
    processes.cluster.let_arrive()
    server.write(memoryview(b"new" * 1000), 2 * BLOCK)
    server.shutdown()
    reader = Session(processes.open(), "vol")
    for offset, data in ((0, b"old"), (BLOCK, b"new"), (2 * BLOCK, b"new")):
        assert read(reader, offset, 3000) == data * 1000


def test_a_lock_is_not_kept_when_what_follows_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    catalog.create_volume(store, "vol", BLOCK)
    looks = iter((True, Error(errno.EIO)))

    def exists(_store: RadosStore, _name: str) -> bool:
        look = next(looks)
        if isinstance(look, Error):
            raise look
        return look

    with monkeypatch.context() as patch:
        patch.setattr(RadosStore, "exists", exists)
        with pytest.raises(Error):
            store.lock_volume("vol")
    processes.open().lock_volume("vol").release()


class Unreliable:
    """Changes of content and of its tables may have no answer: then they are done, are lost, or come within a day."""

    def __init__(self, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
        self._chance = processes.chance
        self._cluster = processes.cluster
        self._real = Ioctx.operate_write_op
        self.share = 0.15
        monkeypatch.setattr(Ioctx, "operate_write_op", lambda io, op, key, flags=0: self._operate(io, op, key, flags))

    def _operate(self, io: Ioctx, op: WriteOp, key: str, flags: int) -> None:
        if not key.startswith("content") or self._chance.random() >= self.share:
            self._real(io, op, key, flags)
            return
        fate = self._chance.choice(("done", "lost", "late", "late"))
        if fate == "done":
            self._real(io, op, key, flags)
        elif fate == "late":
            self._cluster.arrives_later("somebody", key, op)
        raise Error(errno.ETIMEDOUT)


def test_whatever_comes_late_what_is_named_stays_and_all_else_goes(
    seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (seed * 4 + part for seed in seeds for part in range(4)):
        with monkeypatch.context() as patch:
            _put_and_collect(seed, patch)


def _put_and_collect(seed: int, patch: pytest.MonkeyPatch) -> None:
    processes = Processes(seed)
    processes.patched(patch)
    network, chance, cluster = Unreliable(processes, patch), processes.chance, processes.cluster
    clock = [time.time()]
    patch.setattr("extstorage.rados_contents.time.time", lambda: clock[0])
    store = processes.open()
    blocks = {hashlib.sha256(data).digest(): data for data in (b"a" * 4096, b"b" * 4096, b"c" * 4096)}
    named: dict[str, bytes] = {}
    for step in range(80):
        action = chance.choice(("put", "put", "put", "remove", "collect", "collect", "arrive", "day"))
        name = f"image{step}"
        try:
            if action == "put":
                digest = chance.choice(list(blocks))
                store.create(name, maps.from_digests(BLOCK, bytes(16), [digest]), Info(created=1.0, image=True))
                store.put_content(digest, memoryview(blocks[digest]))
                named[name] = digest
            elif action == "remove" and named:
                gone = chance.choice(list(named))
                catalog.remove(store, gone)
                del named[gone]
            elif action == "collect":
                gc.collect(store)
        except UnreachableStoreError:
            # It gives up, and what it had is free at once; here nobody shuts it out.
            processes.kill(store)
            store = processes.open()
            if action == "put":
                catalog.remove(store, name)
        if action in ("arrive", "day"):
            cluster.let_arrive()
            clock[0] += 25 * 3600 if action == "day" else 600
        for digest in named.values():
            assert bytes(cluster.things[f"content.{digest.hex()}"][0].data) == blocks[digest], f"--seed={seed}"
    network.share = 0.0
    cluster.let_arrive()
    assert not [one for one in fsck.check(store) if one.name or one.text.endswith("no collection would find")]
    for name in named:
        catalog.remove(store, name)
    gc.collect(store)
    assert not [key for key in cluster.things if key.startswith("content.")], f"--seed={seed}"
    clock[0] += 25 * 3600
    gc.collect(store)
    assert not any(thing.table for key, (thing, _) in cluster.things.items() if key.startswith("contents."))


def test_the_lock_of_a_snapshot_is_not_kept_when_it_can_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(1)
    processes.patched(monkeypatch)
    store = processes.open()
    catalog.create_volume(store, "vol", BLOCK)
    Session(store, "vol").snapshot("snap", Info(created=0.0))

    def unreadable(*_arguments: object, **_more: object) -> None:
        raise Error(errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(session, "Volume", unreadable)
        with pytest.raises(Error):
            Session(store, "snap")
    catalog.remove(processes.open(), "snap")

# SPDX-License-Identifier: BSD-2-Clause
"""Reads that don't come to Python: which blocks they are allowed for, and that nobody ever reads what was before.

The plugin itself is tests/datapath/direct_sessions.py here. `--seed=N` repeats a failure, `--rounds=N` goes on longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import math
import struct
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

# First of all: it sees to it that the program can be imported where python3-rados is missing.
from tests.unit.extstorage.test_rados_actors import Mortal, RadosWorld  # isort: skip

from extstorage import catalog, direct_reads
from extstorage.direct_reads import Counts, DirectReads, within_plugin
from extstorage.errors import BrokenError, FencedClientError, FencedError, HeldError, UnreachableStoreError
from extstorage.hashing import hash_snapshot
from extstorage.maps import VolumeMap
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.progress import untold
from extstorage.rados_layers import PAGES, RadosLayer, decode_pages
from extstorage.rados_locks import HeldLock
from extstorage.rados_store import RadosStore
from extstorage.session import Session
from extstorage.store import Info
from tests.datapath import fake_rados, generator
from tests.datapath.actors import SPEC, Processes
from tests.datapath.checks import polling, read, writing
from tests.datapath.direct_sessions import DirectSession, DirectSessions
from tests.datapath.fake_rados import Cluster
from tests.datapath.generator import WEIGHTS, Disk

STEPS = 150
SCHEDULES = 3
CYCLES = 15

#: Three whole blocks, and a part of one.
SIZE = 3 * BLOCK + PAGE + SECTOR

#: What nobody wrote.
REST = (1 << 64) - 1

WHOLE = memoryview(b"w" * BLOCK)
A = memoryview(b"a" * PAGE)


class Recorder:
    """An interface that does nothing but remember."""

    def __init__(self, connected: int = 0) -> None:
        self._connected = connected
        self._begun = 0
        self.asked = threading.Semaphore(0)
        self.told: list[tuple[object, ...]] = []

    def connect(self) -> int:
        self.told.append(("connect",))
        self.asked.release()
        return self._connected

    def trust(self, until: int) -> None:
        self.told.append(("trust", until))

    def begin(self) -> int:
        self._begun += 1
        return self._begun

    def allow(self, begun: int, index: int, name: str) -> None:
        self.told.append(("allow", begun, index, name))

    def forget(self, index: int) -> None:
        self.told.append(("forget", index))

    def count(self) -> Counts:
        return Counts(3, 4)


def without_connecting(told: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """In the background, it may come at any time."""
    return [one for one in told if one != ("connect",)]


def test_a_plain_block_is_allowed_with_the_generation_of_its_volume() -> None:
    plugin = Recorder()
    reads = DirectReads(plugin)
    first, second = reads.begin(), reads.begin()
    second.offer(5, lambda index: f"object{index}")
    first.offer(6, lambda index: f"object{index}")
    with second.forgetting(5):
        """The same in every generation."""
    assert without_connecting(plugin.told) == [
        ("allow", 2, 5, "object5"),
        ("allow", 1, 6, "object6"),
        ("forget", 5),
    ]
    assert reads.count() == (3, 4)


def test_nobody_takes_a_block_back_between_the_look_and_the_word() -> None:
    """What was seen before would be said after that."""
    plugin = Recorder()
    allowed = DirectReads(plugin).begin()

    def change() -> None:
        with allowed.forgetting(5):
            names.clear()

    names = {5: "object"}
    changing = threading.Thread(target=change)

    def look(index: int) -> str:
        found = names[index]
        changing.start()
        changing.join(0.05)
        return found

    allowed.offer(5, look)
    changing.join(10)
    assert without_connecting(plugin.told) == [("allow", 1, 5, "object"), ("forget", 5)]


def test_nobody_looks_between_taking_back_and_the_change() -> None:
    plugin = Recorder()
    allowed = DirectReads(plugin).begin()
    names = {5: "object"}
    offering = threading.Thread(target=allowed.offer, args=(5, lambda index: names.get(index, "")))
    with allowed.forgetting(5):
        offering.start()
        offering.join(0.05)
        names.clear()
    offering.join(10)
    assert plugin.told == [("forget", 5)]


def test_a_second_client_connects_once_and_only_for_a_plain_block() -> None:
    plugin = Recorder()
    reads = DirectReads(plugin)
    reads.begin().offer(1, lambda _index: "")
    with reads.begin().forgetting(1):
        """Nothing was said."""
    assert plugin.told == [("forget", 1)]
    for allowed in (reads.begin(), reads.begin()):
        for index in range(3):
            allowed.offer(index, lambda _index: "object")
    assert plugin.asked.acquire(timeout=10)
    assert not plugin.asked.acquire(timeout=0.01)
    assert plugin.told.count(("connect",)) == 1


def test_a_cluster_that_a_second_client_can_not_reach_is_told_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    over = threading.Event()

    def warn(text: str, *values: object) -> None:
        said.append(text % values)
        over.set()

    monkeypatch.setattr(direct_reads, "warning", warn)
    plugin = Recorder(connected=-110)
    allowed = DirectReads(plugin).begin()
    allowed.offer(1, lambda _index: "object")
    assert over.wait(10)
    assert said == ["reads go through Python, for a second client can't reach the cluster: Connection timed out"]
    allowed.offer(2, lambda _index: "object")
    assert ("allow", 1, 2, "object") in plugin.told


class Native:
    """Functions as the plugin has them, behind an address."""

    def __init__(self) -> None:
        self.called: list[object] = []
        functions = direct_reads._Functions(
            direct_reads.VERSION,
            direct_reads._CONNECT(self._connect),
            direct_reads._TRUST(lambda until: self.called.append(("trust", until))),
            direct_reads._BEGIN(lambda: 1 << 40),
            direct_reads._ALLOW(lambda begun, index, name: self.called.append((begun, index, name))),
            direct_reads._FORGET(self.called.append),
            direct_reads._COUNT(self._count),
        )
        self.functions = functions

    def _connect(self, place: ctypes._Pointer[direct_reads._Place]) -> int:
        self.called.append([getattr(place.contents, name) for name, *_ in direct_reads._Place._fields_])
        return -2

    @staticmethod
    def _count(reads: ctypes._Pointer[ctypes.c_uint64], read_bytes: ctypes._Pointer[ctypes.c_uint64]) -> None:
        reads[0], read_bytes[0] = 5, 1 << 40

    @property
    def address(self) -> int:
        return ctypes.addressof(self.functions)


def test_the_functions_of_the_plugin_are_called_with_what_they_take() -> None:
    native = Native()
    reads = within_plugin(native.address, SPEC)
    assert reads is not None
    plugin = reads._interface
    assert plugin.connect() == -2
    allowed = reads.begin()
    plugin.allow(allowed._begun, 1 << 33, "data.x")
    reads.trust(12345.5)
    reads.trust(math.inf)
    with allowed.forgetting(1 << 34):
        """One that a C int does not hold."""
    conf = str(SPEC.conf).encode()
    place = [conf, SPEC.user.encode(), SPEC.keyring.encode(), b"pool", SPEC.namespace.encode(), b"15"]
    until = [("trust", 12345500000000), ("trust", 10**18)]
    assert native.called == [place, (1 << 40, 1 << 33, b"data.x"), *until, 1 << 34]
    assert reads.count() == (5, 1 << 40)


def test_a_plugin_of_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(direct_reads, "warning", said.append)
    native = Native()
    native.functions.version += 1
    assert within_plugin(native.address, SPEC) is None
    assert said == ["reads go through Python, for nbdkit-archipelago-plugin.so is of another version"]


# Of a volume.


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    found = Processes(1)
    found.patched(monkeypatch)
    return found


@pytest.fixture
def sessions(processes: Processes) -> DirectSessions:
    return DirectSessions(processes)


@pytest.fixture
def server(processes: Processes, sessions: DirectSessions) -> DirectSession:
    """Of `vol`, which has nothing yet."""
    store = processes.open()
    catalog.create_volume(store, "vol", SIZE)
    session = sessions(store, "vol")
    session.open(True)
    return session


def is_read_directly(session: DirectSession, index: int, length: int = PAGE) -> bool:
    """From the second time on. Both times the same is read."""
    first = read(session, index * BLOCK, length)
    before = session.plugin.count().reads
    assert read(session, index * BLOCK, length) == first
    return session.plugin.count().reads > before


def test_a_block_that_the_volume_has_whole_is_read_directly(server: DirectSession) -> None:
    server.write(WHOLE, BLOCK)
    assert not server.plugin.allowed(1)
    assert is_read_directly(server, 1)
    assert server.plugin.allowed(1).startswith("data.")
    server.write(A, BLOCK + 5 * PAGE)
    assert is_read_directly(server, 1)
    assert read(server, BLOCK + 5 * PAGE, PAGE) == bytes(A)
    assert server.plugin.count() == (4, 4 * PAGE)


def test_a_read_of_two_blocks_is_none_of_one(server: DirectSession) -> None:
    server.write(WHOLE, 0)
    server.write(WHOLE, BLOCK)
    for _ in range(2):
        assert read(server, BLOCK - PAGE, 2 * PAGE) == b"w" * 2 * PAGE
    assert server.plugin.count().reads == 0


def test_blocks_that_are_not_all_in_one_object_are_read_by_the_volume(server: DirectSession) -> None:
    server.write(WHOLE[PAGE:], PAGE)  # all but a page
    server.write(WHOLE, BLOCK)
    server.zero(BLOCK + 7 * PAGE, PAGE)
    server.write(WHOLE[: PAGE + SECTOR], 3 * BLOCK)  # the last one
    assert not any(is_read_directly(server, index) for index in range(4))
    server.snapshot("snap", Info(created=0.0))
    assert not any(is_read_directly(server, index) for index in range(4))
    server.write(A, 0)
    server.write(A, BLOCK + 7 * PAGE)
    server.write(A, 2 * BLOCK)
    assert not any(is_read_directly(server, index) for index in range(4))


def test_a_block_is_plain_again_when_its_last_zero_page_is_written(server: DirectSession) -> None:
    server.write(WHOLE, 0)
    server.discard(0, 2 * PAGE)
    server.write(A, 0)
    assert not is_read_directly(server, 0)
    server.write(A[:SECTOR], PAGE)
    assert is_read_directly(server, 0, BLOCK)
    assert read(server, 0, 3 * PAGE) == bytes(A) + b"a" * SECTOR + bytes(PAGE - SECTOR) + b"w" * PAGE


def test_a_block_that_a_frozen_layer_has_whole_is_read_directly(server: DirectSession) -> None:
    server.write(WHOLE, 0)
    server.write(WHOLE, BLOCK)
    server.write(WHOLE[:BLOCK], 2 * BLOCK)
    server.snapshot("snap", Info(created=0.0))
    server.write(A, BLOCK)
    assert is_read_directly(server, 0)
    assert not is_read_directly(server, 1)
    old = server.plugin.allowed(0)
    server.write(WHOLE, 0)
    assert is_read_directly(server, 0)
    assert server.plugin.allowed(0) not in ("", old)
    # Two layers, none of which is plain by itself.
    server.snapshot("snap2", Info(created=0.0))
    assert not is_read_directly(server, 1)
    assert is_read_directly(server, 2)


def test_content_is_read_directly_unless_it_is_shorter_than_a_block(
    processes: Processes, sessions: DirectSessions, server: DirectSession
) -> None:
    server.write(WHOLE, 0)
    server.write(A, BLOCK)
    server.snapshot("snap", Info(created=0.0))
    store = processes.open()
    hash_snapshot(store, "snap", untold)
    snapshot = sessions(store, "snap")
    catalog.create_volume(store, "clone", SIZE, origin="snap")
    clone = sessions(store, "clone")
    clone.open(True)
    for one in (snapshot, clone):
        assert is_read_directly(one, 0)
        assert one.plugin.allowed(0).startswith("content.")
        assert read(one, BLOCK, 2 * PAGE) == read(one, BLOCK, 2 * PAGE) == bytes(A) + bytes(PAGE)
    clone.write(A, 0)
    assert read(clone, 0, PAGE) == bytes(A)
    assert read(snapshot, 0, PAGE) == b"w" * PAGE


def test_a_volume_that_somebody_else_may_write_is_not_read_directly(
    processes: Processes, sessions: DirectSessions, server: DirectSession
) -> None:
    server.write(WHOLE, 0)
    server.snapshot("snap", Info(created=0.0))
    other = sessions(processes.open(), "vol")
    assert not is_read_directly(other, 0)
    server.write(WHOLE, 0)
    assert not is_read_directly(other, 0)
    server.close()
    assert not is_read_directly(other, 0)
    other.open(True)
    assert is_read_directly(other, 0)


CHANGES: dict[str, Callable[[Session], None]] = {
    "write": lambda session: session.write(A, 0),
    "a whole block": lambda session: session.write(memoryview(bytes(A) * (BLOCK // PAGE)), 0),
    "zero": lambda session: session.zero(0, PAGE),
    "a few zeros": lambda session: session.zero(0, SECTOR),
    "discard": lambda session: session.discard(0, PAGE),
    "discard the block": lambda session: session.discard(0, BLOCK),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_nobody_reads_what_was_before(server: DirectSession, change: str, frozen: bool) -> None:
    server.write(WHOLE, 0)
    if frozen:
        server.snapshot("snap", Info(created=0.0))
    assert is_read_directly(server, 0)
    CHANGES[change](server)
    found = read(server, 0, 2 * PAGE)
    plugin = server.plugin
    server.plugin = type(plugin)(plugin._store, plugin._cluster, plugin._clock)
    assert found == read(server, 0, 2 * PAGE)
    assert found[0] != b"w"[0]


def test_a_block_is_not_read_directly_after_a_discard_that_may_have_been_done(
    processes: Processes, server: DirectSession
) -> None:
    server.write(WHOLE, 0)
    assert is_read_directly(server, 0)

    def unanswered(_client: fake_rados.Rados, what: str) -> None:
        if what == "change":
            raise fake_rados.UnansweredError("now")

    mishap, processes.cluster.mishap = processes.cluster.mishap, unanswered
    with pytest.raises(UnreachableStoreError):
        server.discard(0, PAGE)
    processes.cluster.mishap = mishap
    leave_rests(processes.cluster)
    assert read(server, 0, PAGE) == bytes(PAGE)


def test_a_page_that_is_just_becoming_owned_is_written_when_no_older_one_is_read(
    server: DirectSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writer takes nothing back: to it, the page is owned."""
    server.write(WHOLE, 0)
    server.snapshot("snap", Info(created=0.0))
    assert is_read_directly(server, 0)
    found: list[bytes] = []

    def write_again() -> None:
        server.write(A, 0)
        found.append(read(server, 0, PAGE))

    other = threading.Thread(target=write_again)

    def meanwhile() -> None:
        if other.ident is None:
            other.start()
            other.join(0.05)

    monkeypatch.setattr(server.plugin, "_turn", meanwhile)
    server.zero(0, PAGE)
    other.join(10)
    assert found == [bytes(A)]


@pytest.mark.parametrize("change", ["zero", "discard", "discard the block"])
def test_what_is_behind_zero_pages_is_never_read(processes: Processes, server: DirectSession, change: str) -> None:
    """A writer that died may have left it there; only the attribute counts."""
    server.write(WHOLE, 0)
    assert is_read_directly(server, 0)
    CHANGES[change](server)
    leave_rests(processes.cluster)
    assert read(server, 0, PAGE) == read(server, 0, PAGE) == bytes(PAGE)
    server.snapshot("snap", Info(created=0.0))
    assert read(server, 0, PAGE) == read(server, 0, PAGE) == bytes(PAGE)


def leave_rests(cluster: Cluster) -> None:
    for key, (thing, _) in cluster.things.items():
        if key.startswith("data.") and PAGES in thing.attributes:
            _, zeros = decode_pages(key, thing.attributes[PAGES])
            for page in (0, 1, 7, BLOCK // PAGE - 1):
                if zeros >> page & 1:
                    thing.data.extend(bytes(max(0, (page + 1) * PAGE - len(thing.data))))
                    thing.data[page * PAGE : (page + 1) * PAGE] = REST.to_bytes(8, "little") * (PAGE // 8)


# Of a session.


def test_a_snapshot_begins_anew(server: DirectSession) -> None:
    """What is written from now on is another object."""
    server.write(WHOLE, 0)
    assert is_read_directly(server, 0)
    before = server._volume
    server.snapshot("snap", Info(created=0.0))
    assert not server.plugin.allowed(0)
    before._offer(0)
    assert not server.plugin.allowed(0)
    assert is_read_directly(server, 0)


def test_who_gives_the_volume_up_reads_what_the_next_one_writes(
    processes: Processes, sessions: DirectSessions, server: DirectSession
) -> None:
    other = sessions(processes.open(), "vol")
    server.write(WHOLE, 0)
    server.snapshot("snap", Info(created=0.0))
    sides = [server, other]
    for turn, side in enumerate((server, other, server)):
        assert is_read_directly(side, 0) or turn
        side.close()
        assert not side.plugin.allowed(0)
        following = sides[1 - sides.index(side)]
        following.open(True)
        assert is_read_directly(following, 0) or turn
        data = b"%d" % turn * PAGE
        following.write(memoryview(data), 0)
        assert [read(one, 0, PAGE) for one in (server, other)] == [data, data]


@pytest.fixture
def overtaken(processes: Processes, sessions: DirectSessions, monkeypatch: pytest.MonkeyPatch) -> DirectSession:
    """A server that hung and was taken over; it has not noticed yet."""
    store = processes.open()
    catalog.create_volume(store, "vol", SIZE)
    session = sessions(store, "vol")
    session.open(True)
    session.write(WHOLE, 0)
    assert is_read_directly(session, 0)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_renew", lambda _store: None)
        following = sessions(processes.open("other"), "vol")
        following.open(True)
    following.snapshot("snap", Info(created=0.0))
    following.write(A, 0)
    following.close()
    return session


def find_out(session: Session) -> None:
    """As the thread that renews locks does."""
    assert isinstance(session._store, RadosStore)
    assert isinstance(session._lock, HeldLock)
    session._store._locks._renew(session._lock)


def test_who_finds_the_volume_taken_over_reads_nothing_directly(overtaken: DirectSession) -> None:
    find_out(overtaken)
    overtaken.poll()
    with pytest.raises(FencedClientError):
        read(overtaken, 0, PAGE)
    overtaken.open(True)
    assert read(overtaken, 0, PAGE) == bytes(A)
    overtaken.write(WHOLE, 0)
    assert is_read_directly(overtaken, 0)


def test_who_learns_it_from_a_flush_reads_nothing_directly(overtaken: DirectSession) -> None:
    find_out(overtaken)
    with pytest.raises(FencedError):
        overtaken.flush()
    with pytest.raises(FencedError):
        read(overtaken, 0, PAGE)


def test_nothing_is_read_directly_while_a_lost_volume_can_not_be_opened_again(
    overtaken: DirectSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_out(overtaken)

    def unreadable(_store: RadosStore, name: str) -> VolumeMap:
        raise BrokenError(path=name, reason="just once")

    with monkeypatch.context() as patch:
        patch.setattr(RadosStore, "read_map", unreadable)
        with pytest.raises(BrokenError):
            overtaken.open(True)
    with pytest.raises(FencedError):
        read(overtaken, 0, PAGE)
    overtaken.open(True)
    assert read(overtaken, 0, PAGE) == bytes(A)


def test_a_read_that_was_answered_does_not_fail_for_what_is_said_afterwards(
    server: DirectSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among many layers, the one that was read may be closed by then, and can't be opened now."""
    server.write(WHOLE, 0)
    server.snapshot("snap", Info(created=0.0))
    real = RadosLayer.readinto

    def evict(layer: RadosLayer, index: int, offset: int, buffer: memoryview) -> None:
        real(layer, index, offset, buffer)
        server._volume._layers.clear()
        monkeypatch.setattr(server.plugin._cluster, "mishap", unread)

    def unread(_client: fake_rados.Rados, _what: str) -> None:
        raise fake_rados.Error(errno.EIO)

    monkeypatch.setattr(RadosLayer, "readinto", evict)
    assert read(server, 0, PAGE) == b"w" * PAGE


# Random histories.


class Reading(Mortal):
    """Reads more, makes more blocks plain, and leaves rests where nobody may find them."""

    weights: Mapping[str, float] = {**WEIGHTS, "read": 30, "write_whole": 20, "leave_rests": 4, "share": 3, "hash": 3}

    def read(self, disk: Disk) -> None:
        super().read(disk)
        start = self.random.randrange(-(-disk.model.size // BLOCK)) * BLOCK
        self._note(f"read {disk.name} several times from {start}")
        for _ in range(3):
            length = min(disk.model.size - start, self.random.randrange(1, 8 * PAGE))
            assert read(disk.session, start, length) == disk.model.read(start, length)

    def write_whole(self, disk: Disk) -> None:
        index = self.random.randrange(-(-disk.model.size // BLOCK))
        length = min(BLOCK, disk.model.size - index * BLOCK)
        self._note(f"write block {index} of {disk.name}")
        data = (self.random.randbytes(PAGE) * (BLOCK // PAGE))[:length]
        self._request(disk, disk.session, writing(data, index * BLOCK))

    def leave_rests(self, disk: Disk) -> None:
        """Behind zero pages, as writers do that die."""
        self._note("leave rests")
        assert isinstance(self.world, RadosWorld)
        leave_rests(self.world._processes.cluster)

    def share(self, disk: Disk) -> None:
        """As during a migration, which then fails. Both sides read."""
        self._note(f"share {disk.name}")
        sides = self._begin_hand_over(disk)
        disk.sessions[1 - disk.node] = sides[1]
        for _ in range(4):
            one, other = self.random.sample(sides, 2)
            for side, waiting in ((one, other), (other, one)):
                with polling(waiting):
                    for _ in range(2):
                        offset, length = self._range(disk.model.size)
                        assert read(side, offset, length) == disk.model.read(offset, length)
                    offset, length = self._range(disk.model.size)
                    self._request(disk, side, writing(self.random.randbytes(length), offset))
        sides[1].close()
        sides[0].open(True)
        sides[1].shutdown()
        disk.sessions[1 - disk.node] = None


@pytest.mark.parametrize("mortal", [False, True])
def test_everything_reads_as_the_model(
    tmp_path: Path, seeds: list[int], monkeypatch: pytest.MonkeyPatch, mortal: bool
) -> None:
    count = 0
    for seed in seeds:
        processes = Processes(seed)
        processes.patched(monkeypatch)
        sessions = DirectSessions(processes)
        monkeypatch.setattr(generator, "Session", sessions)
        monkeypatch.setattr(generator, "SIZES", (BLOCK, BLOCK + SECTOR, 2 * BLOCK))
        one = Reading(RadosWorld(processes), tmp_path / str(seed), seed)
        if mortal:
            one.reaper = processes.reaper
            processes.reaper.aim(100)
        one.run(STEPS)
        count += sessions.reads
    assert count > 10 * len(seeds)


class Change:
    """What one page became, or may have become if it never ended."""

    def __init__(self, value: int, begun: float, ended: float = math.inf) -> None:
        self.value = value
        self.begun = begun
        self.ended = ended


class Chronicle:
    """When which page was changed and read. A page has a number in it, which is 0 or that of one change only."""

    def __init__(self) -> None:
        self._clock = itertools.count(1)
        self._numbers = itertools.count(1)
        self._changes: dict[int, list[Change]] = {}
        self._rests = 0
        self.told: list[str] = []

    def leave_rests(self, cluster: Cluster) -> None:
        """As those of a write that came after a discard of the same pages, and will find that out.

        They may be found by a read that began before, and as long as a discard is not over.
        """
        leave_rests(cluster)
        self._rests = next(self._clock)
        self.told.append(f"{self._rests}: rests")

    def of(self, page: int) -> list[Change]:
        return self._changes.setdefault(page, [Change(0, 0, 0)])

    def write(self, session: Session, page: int, count: int) -> None:
        number = next(self._numbers)
        data = memoryview(struct.pack("<Q", number) * (count * PAGE // 8))
        self._change(f"write {number}", page, count, number, partial(session.write, data, page * PAGE))

    def zero(self, session: Session, page: int, count: int) -> None:
        self._change("zero", page, count, 0, partial(session.zero, page * PAGE, count * PAGE))

    def discard(self, session: Session, page: int, count: int) -> None:
        self._change("discard", page, count, 0, partial(session.discard, page * PAGE, count * PAGE))

    def _change(self, what: str, page: int, count: int, value: int, work: Callable[[], None]) -> None:
        changes = [Change(value, next(self._clock)) for _ in range(count)]
        self.told.append(f"{changes[0].begun}: {what} of {count} pages from {page}")
        for at, change in enumerate(changes, page):
            self.of(at).append(change)
        work()
        ended = next(self._clock)
        for change in changes:
            change.ended = ended
        self.told.append(f"{ended}: the one of {changes[0].begun} ended")

    def read(self, session: Session, page: int) -> None:
        """It has what a change left that was not over with another one before this began."""
        begun = next(self._clock)
        found = read(session, page * PAGE, PAGE)
        ended = next(self._clock)
        [value] = set(struct.unpack(f"<{PAGE // 8}Q", found))
        self.told.append(f"{begun} to {ended}: page {page} read as {value}")
        changes = [change for change in self.of(page) if change.begun < ended]
        last = max((change.begun for change in changes if change.ended < begun), default=0)
        possible = {change.value for change in changes if change.ended >= last}
        if begun < self._rests or any(change.value == 0 and change.ended >= begun for change in changes):
            possible.add(REST)
        assert value in possible, f"page {page}: {value} is none of {possible}, from {begun} to {ended}"


class Users:
    """Threads of the servers of one volume; with two servers, the lock goes to and fro between them.

    Most of them meet in one block, which is written and frozen again and again: what is changed next is read directly.
    """

    PAGES = (0, 1, BLOCK // PAGE - 1)
    BLOCKS = (0, 1, 2)

    def __init__(self, processes: Processes, sessions: DirectSessions, servers: int) -> None:
        self._processes = processes
        self._chance = processes.chance
        self.chronicle = Chronicle()
        stores = [processes.open(f"node{number}") for number in range(servers)]
        catalog.create_volume(stores[0], "vol", len(self.BLOCKS) * BLOCK)
        self.servers = [sessions(store, "vol") for store in stores]
        self._server = self.servers[0]
        self._block = 0
        self._is_over = False
        self.servers[0].open(servers == 1)
        for server in self.servers[1:]:
            server.close()
            server.open(False)

    def run(self) -> None:
        works = [("administrator", self._administrating)]
        for number in range(2):
            reading = partial(self._until_it_is_over, lambda: self.chronicle.read(self._server, self._page()), 0.02)
            works += [(f"reader{number}", reading)]
            works += [(f"writer{number}", partial(self._until_it_is_over, self._write, 0.3))]
        for number, server in enumerate(self.servers):
            works += [(f"helper{number}", partial(self._until_it_is_over, server.poll, 0.2))]
        for actor in self._processes.run(works):
            if actor.fate is not None:
                raise actor.fate

    def _until_it_is_over(self, action: Callable[[], None], pause: float) -> None:
        try:
            while not self._is_over:
                self._try(action)
                self._processes.sleep(self._chance.uniform(0, pause))
        finally:
            self._is_over = True

    def _try(self, action: Callable[[], None]) -> None:
        """One of those who hung may have been taken over. Whoever finds that out begins anew."""
        try:
            action()
        except (HeldError, FencedError, FencedClientError):
            for server in self.servers:
                with contextlib.suppress(HeldError, FencedError, FencedClientError):
                    server.open(len(self.servers) == 1)

    def _page(self) -> int:
        block = self._block if self._chance.random() < 0.9 else self._chance.choice(self.BLOCKS)
        return block * (BLOCK // PAGE) + self._chance.choice(self.PAGES)

    def _write(self) -> None:
        chronicle = self.chronicle
        change = self._chance.choice((chronicle.write, chronicle.zero, chronicle.discard))
        page, count = self._page(), 1
        if self._chance.random() < 0.1:
            page, count = page - page % (BLOCK // PAGE), BLOCK // PAGE
        change(self._server, page, count)

    def _administrating(self) -> None:
        try:
            for name in range(CYCLES):
                if self._is_over:
                    return
                self._try(partial(self._administrate, f"snap{name}"))
        finally:
            self._is_over = True

    def _administrate(self, name: str) -> None:
        if self._chance.random() < 0.1:
            self._server = self._chance.choice(self.servers)
        if self._chance.random() < 0.2:
            self.chronicle.leave_rests(self._processes.cluster)
        else:
            self._block = self._chance.choice(self.BLOCKS)
            self.chronicle.write(self._server, self._block * (BLOCK // PAGE), BLOCK // PAGE)
            self._server.snapshot(name, Info(created=0.0))
        self._processes.sleep(self._chance.uniform(0, 0.2))


@pytest.mark.parametrize("servers", [1, 2])
def test_nobody_reads_what_was_before_the_last_change_that_was_over(
    seeds: list[int], monkeypatch: pytest.MonkeyPatch, servers: int
) -> None:
    count = 0
    for seed in (first * SCHEDULES + part for first in seeds for part in range(SCHEDULES)):
        with monkeypatch.context() as patch:
            processes = Processes(seed)
            processes.patched(patch)
            processes.share_a_process(patch)
            sessions = DirectSessions(processes)
            users = Users(processes, sessions, servers)
            try:
                users.run()
            except Exception as error:
                told = "\n".join(users.chronicle.told[-60:])
                raise AssertionError(f"--seed={seed // SCHEDULES}: {error!r}\n{told}") from error
            count += sessions.reads
    assert count > 10 * SCHEDULES * len(seeds)

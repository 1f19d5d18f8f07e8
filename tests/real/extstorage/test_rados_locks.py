# SPDX-License-Identifier: BSD-2-Clause
"""One writer among several RADOS clients: who waits, who takes over, and that one who was taken over can't write."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extstorage import catalog, rados_locks, specs
from extstorage.errors import FencedClientError, FencedError, HeldError, NoSuchVolumeError
from extstorage.names import BLOCK, PAGE
from extstorage.rados_errors import RadosError
from extstorage.rados_locks import HeldLock, Identity, Locks, machine
from extstorage.rados_pool import Change
from extstorage.rados_store import RadosStore, create_store, open_store
from extstorage.session import Session
from extstorage.specs import RadosSpec
from tests.real.extstorage.ceph import Ceph

TREE = Path(__file__).parents[3]
A = memoryview(b"a" * PAGE)

Writers = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def place(ceph: Ceph, request: pytest.FixtureRequest) -> str:
    return ceph.spec(request.node.name.replace("[", "-").rstrip("]"), lease="2")


@pytest.fixture
def spec(place: str) -> RadosSpec:
    spec = specs.parse(place)
    assert isinstance(spec, RadosSpec)
    return spec


@pytest.fixture
def store(spec: RadosSpec) -> Iterator[RadosStore]:
    store = create_store(spec)
    catalog.create_volume(store, "vol", BLOCK)
    yield store
    store.close()


@pytest.fixture
def writers(place: str) -> Iterator[Writers]:
    """Starts writers and waits until they write."""
    started = []

    def start(where: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.real.extstorage.writer", place, "vol", where]
        writer = subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, text=True)
        started.append(writer)
        assert writer.stdout is not None
        assert [writer.stdout.readline() for _ in range(4)] == ["open\n", "0\n", "1\n", "2\n"]
        return writer

    yield start
    for writer in started:
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()


def read(session: Session, offset: int = 0) -> bytes:
    buffer = bytearray(PAGE)
    session.readinto(memoryview(buffer), offset)
    return bytes(buffer)


def test_a_writer_elsewhere_that_lives_is_left_alone(store: RadosStore, writers: Writers) -> None:
    writer = writers("elsewhere")
    with pytest.raises(HeldError, match="node elsewhere"):
        store.lock_volume("vol")
    with pytest.raises(HeldError, match="node elsewhere"):
        store.lock_volume("vol", patience=30)
    assert writer.poll() is None


def test_a_writer_that_was_taken_over_can_not_write(store: RadosStore, writers: Writers) -> None:
    writer = writers("elsewhere")
    writer.send_signal(subprocess.signal.SIGSTOP)  # type: ignore[attr-defined]
    session = Session(store, "vol")
    session.open(True)
    for page in range(512):
        session.write(A, page * PAGE)
    writer.send_signal(subprocess.signal.SIGCONT)  # type: ignore[attr-defined]
    output = writer.communicate(timeout=20)[0]
    assert output.splitlines()[-1].startswith(("FencedClientError", "FencedError")), output[-200:]
    assert all(read(session, page * PAGE) == bytes(A) for page in range(512))
    session.shutdown()


def test_a_source_that_dies_in_a_migration_is_followed_after_its_lease(store: RadosStore, writers: Writers) -> None:
    """Long before the time that the source has to yield."""
    writers("elsewhere").kill()
    session = Session(store, "vol")
    session.open(False)
    session.write(A, 0)
    assert read(session) == bytes(A)
    session.shutdown()


def test_a_writer_that_was_killed_here_is_followed_at_once(store: RadosStore, writers: Writers) -> None:
    writer = writers("here")
    with pytest.raises(HeldError, match=f"process {writer.pid}"):
        store.lock_volume("vol", patience=30)
    time.sleep(0.2)
    writer.kill()
    output = writer.communicate()[0]
    session = Session(store, "vol")
    session._obtain()
    written = [int(line) for line in output.splitlines()]
    for number in range(3, max(written)):
        if number + 512 > max(written):
            assert read(session, number % 512 * PAGE) == bytes([1 + number % 255]) * PAGE
    session.shutdown()


def test_a_writer_that_was_killed_elsewhere_is_waited_for(store: RadosStore, writers: Writers) -> None:
    writer = writers("elsewhere")
    writer.kill()
    writer.communicate()
    with pytest.raises(HeldError):
        store.lock_volume("vol")
    store.lock_volume("vol", patience=store.patience).release()


@pytest.mark.parametrize("closed", [False, True])
def test_a_client_that_was_shut_out_begins_anew(store: RadosStore, spec: RadosSpec, closed: bool) -> None:
    """What it held is lost, what it wrote stays, and when nobody relies on its locks, it gets a new connection."""
    session = Session(store, "vol")
    session.open(True)
    session.write(A, 0)
    other = open_store(spec)
    other._client.fence(store._client.address, 60)
    assert other.exists("vol")  # from this, the OSD learns of it at the latest
    with pytest.raises(FencedClientError):
        session.write(A, PAGE)
    if closed:
        session.close()
        with pytest.raises(FencedError):
            session.flush()
    session.open(True)
    assert read(session) == bytes(A)
    session.write(A, PAGE)
    session.shutdown()
    other.close()


def test_who_looks_while_a_lock_is_released_takes_nobody_for_dead(
    store: RadosStore, spec: RadosSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients of one process: what one read before the release is judged after it."""
    other = open_store(spec)
    held = store.lock_volume("vol")
    load = other._locks._load

    def slow(key: str) -> object:
        found = load(key)
        if key == held.key:
            held.release()
        return found

    monkeypatch.setattr(other._locks, "_load", slow)
    address = store._client.address
    other.lock_volume("vol", patience=store.patience).release()
    store.lock_volume("vol").release()
    assert store._client.address == address, "it was shut out"
    other.close()


def test_a_lock_changes_hands_without_two_having_it(store: RadosStore, spec: RadosSpec) -> None:
    clients = [open_store(spec) for _ in range(4)]
    inside = []
    most = []

    def work(client: RadosStore) -> None:
        for _ in range(8):
            with client.locked():
                inside.append(client)
                most.append(len(inside))
                time.sleep(0.001)
                inside.remove(client)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 32
    for client in clients:
        client.close()


def test_readers_share_and_dead_readers_do_not_count(store: RadosStore, spec: RadosSpec) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = open_store(spec, identity=Identity("here", machine(), gone.pid, 1))
    dead.lock_volume("vol", shared=True)
    first, second = store.lock_volume("vol", shared=True), store.lock_volume("vol", shared=True)
    with pytest.raises(HeldError):
        store.lock_volume("vol")
    first.release()
    second.release()
    store.lock_volume("vol").release()
    # A reader does no harm, so it is not shut out.
    assert dead.exists("vol")
    dead.close()


def test_one_who_is_about_to_release_is_not_dead(
    store: RadosStore, spec: RadosSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients of one process: the other one asks in the moment before the record changes."""
    other = open_store(spec)
    lock = store.lock_volume("vol")
    real = store._locks._store

    def store_later(*arguments: Any) -> int:
        with pytest.raises(HeldError):
            other.lock_volume("vol")
        return real(*arguments)

    monkeypatch.setattr(store._locks, "_store", store_later)
    lock.release()
    assert store.exists("vol")
    other.lock_volume("vol").release()
    other.close()


def test_a_lock_is_not_removed_under_the_next_volume_of_that_name(
    store: RadosStore, spec: RadosSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who came too late for a removed volume cleans up; meanwhile there is a new one, with a server."""
    other = open_store(spec)
    take, release = store._locks.take, HeldLock.release

    def take_too_late(*arguments: Any, **more: Any) -> HeldLock:
        catalog.remove(other, "vol")
        monkeypatch.setattr(HeldLock, "release", release_early)
        return take(*arguments, **more)

    def release_early(lock: HeldLock) -> None:
        monkeypatch.setattr(HeldLock, "release", release)
        lock.release()
        catalog.create_volume(other, "vol", BLOCK)
        other.lock_volume("vol")

    monkeypatch.setattr(store._locks, "take", take_too_late)
    with pytest.raises(NoSuchVolumeError):
        store.lock_volume("vol")
    monkeypatch.undo()
    with pytest.raises(HeldError):
        store.lock_volume("vol")
    other.close()


class Clock:
    """Time that passes when somebody sleeps, or waits for the cluster."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic
    CLOCK_BOOTTIME = 7

    def clock_gettime(self, clock: int) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Silence:
    """A client of a cluster that once does not answer for a while, to anybody."""

    fenced = False
    place = "a store"
    address = "here"

    def __init__(self, clock: Clock, lives: bool) -> None:
        self.objects = self
        self.shut_out: list[str] = []
        self._clock = clock
        self._lives = lives
        self._looks = 0
        self._beat = 1

    def read_versioned(self, _key: str, _length: int) -> tuple[bytes, int]:
        self._looks += 1
        if self._looks == 5:
            self._clock.now += 30
        elif self._lives and self._looks > 5 and not self._looks % 50:
            self._beat += 1  # it renews as soon as it can
        entry = {**Identity("elsewhere", "boot", 1, 1)._asdict(), "id": "i", "since": 0.0, "address": "there"}
        return json.dumps({"exclusive": {**entry, "lease": 15.0, "beat": self._beat}}).encode(), 7

    def apply_versioned(self, _key: str, change: Change, *, force: bool) -> int:
        change.op.release()
        return 8 + force

    def fence(self, address: str, _seconds: int) -> None:
        self.shut_out.append(address)


@pytest.mark.parametrize("lives", [True, False])
def test_time_in_which_the_cluster_was_silent_does_not_count(monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    """Neither against a holder, who could not renew, nor against the patience of the one who waits for a dead one."""
    clock = Clock()
    client = Silence(clock, lives)
    monkeypatch.setattr(rados_locks, "time", clock)
    locks = Locks(client, 15.0, Identity.own())  # type: ignore[arg-type]
    if lives:
        with pytest.raises(HeldError):
            locks.take("key", "vol", patience=23.5)
        assert client.shut_out == []
    else:
        locks.take("key", "vol", patience=23.5)
        assert client.shut_out == ["there"]
    locks.close()


def test_a_lock_of_which_nobody_knows_who_has_it_is_not_free(store: RadosStore) -> None:
    lock = store.lock_volume("vol")
    for record in (b"", b"{", b"[]", b"7", b"\xff"):
        store._objects.apply(lock.key, Change().write_full(record))
        with pytest.raises(RadosError, match="can't be read"):
            store.lock_volume("vol")


def test_readers_that_died_here_do_not_fill_the_record(store: RadosStore, spec: RadosSpec) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = open_store(spec, identity=Identity("here", machine(), gone.pid, 1))
    for _ in range(3):
        dead.lock_volume("vol", shared=True)
    lock = store.lock_volume("vol", shared=True)
    assert [entry["id"] for entry in store._locks.peek(lock.key)["shared"]] == [lock.id]
    lock.release()
    dead.close()

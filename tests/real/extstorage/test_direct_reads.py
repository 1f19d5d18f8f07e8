# SPDX-License-Identifier: BSD-2-Clause
"""Reads that a server answers without Python, from a real RADOS: they happen, and nobody can tell by what they say.

The random histories of test_fsx.py go through the same plugin; its blocks are seldom whole.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd
import pytest

from extstorage import catalog, servers
from extstorage.names import BLOCK, PAGE
from extstorage.rados_layers import data_key
from extstorage.rados_locks import Identity
from extstorage.rados_store import RadosStore, open_store
from extstorage.session import Session
from tests.datapath.nbd_server import NbdSession
from tests.real.extstorage.provider import eventually

SIZE = 3 * BLOCK + 5 * PAGE
STEPS = 400

#: Stamps that a writer leaves, and how often the volume is frozen meanwhile.
STAMPS = 3000
FREEZE = 300


@pytest.fixture
def store(rados_store: RadosStore) -> RadosStore:
    catalog.create_volume(rados_store, "vol", SIZE)
    return rados_store


@contextmanager
def served(store: RadosStore, run: Path, name: str = "vol", *, exclusive: bool | None = True) -> Iterator[NbdSession]:
    assert servers.plugin()[0] == servers.NATIVE, "the package with the plugin is not installed"
    run.mkdir(parents=True)
    spec = store._spec
    options = f"conf={spec.conf}&user={spec.user}&keyring={spec.keyring}&lease={spec.lease:g}"
    session = NbdSession(f"{spec}?{options}", name, run)
    try:
        if exclusive is not None:
            session.open(exclusive)
        yield session
    finally:
        if session.process.poll() is None:
            session.shutdown()


def read(session: NbdSession, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    session.readinto(memoryview(buffer), offset)
    return bytes(buffer)


def direct(session: NbdSession) -> int:
    requests = session.call("status")["requests"]
    assert isinstance(requests, dict)
    assert requests["direct_reads"] <= requests["reads"]
    return int(requests["direct_reads"])


def read_directly(session: NbdSession, offset: int, length: int = PAGE) -> bytes:
    """The second client connects in the background, and the first read of a block is never direct."""
    before = direct(session)
    found = []

    def is_direct() -> bool:
        found.append(read(session, offset, length))
        return direct(session) > before

    eventually(is_direct)
    return found[-1]


def test_every_change_is_seen_by_the_next_read(store: RadosStore, tmp_path: Path, seeds: list[int]) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        model = bytearray(chance.randbytes(SIZE))
        with served(store, tmp_path / f"run{seed}") as session:
            session.write(memoryview(model), 0)
            assert read_directly(session, 0) == model[:PAGE]
            before = direct(session)
            for number in range(STEPS):
                change(session, model, chance, f"s{seed}-{number}")
                start = chance.randrange(SIZE // PAGE) * PAGE + chance.choice((0, 0, 512, 700))
                length = min(chance.choice((512, PAGE, 5 * PAGE, 64 << 10, 1 << 20)), SIZE - start)
                assert read(session, start, length) == model[start : start + length], (seed, number)
            assert direct(session) - before > STEPS // 10


def change(session: NbdSession, model: bytearray, chance: random.Random, name: str) -> None:
    """Mostly of pages that are there; now and then a whole block, which is plain again afterwards."""
    kind = chance.choices(("write", "block", "zero", "discard", "snapshot", "none"), (30, 12, 3, 3, 2, 50))[0]
    start = chance.randrange(SIZE // PAGE) * PAGE
    length = min(chance.choice((PAGE, 3 * PAGE, 64 << 10)), SIZE - start)
    if kind == "block":
        start, length = chance.randrange(3) * BLOCK, BLOCK
    if kind in ("write", "block"):
        data = chance.randbytes(length)
        session.write(memoryview(data), start)
        model[start : start + length] = data
    elif kind in ("zero", "discard"):
        getattr(session, kind)(start, length)
        model[start : start + length] = bytes(length)
    elif kind == "snapshot":
        session.snapshot(name)


def test_readers_never_see_what_was_before_an_acknowledged_write(store: RadosStore, tmp_path: Path) -> None:
    """Also while the volume's map is replaced under them, and its block goes from one layer to the next."""
    stamp = [0, 0]  # begun, acknowledged

    def look(session: NbdSession, ended: threading.Event, wrong: list[str]) -> None:
        client = session.connect()
        while not ended.is_set():
            least = stamp[1]
            data = client.pread(PAGE, 0)
            found = int.from_bytes(data[:8], "big")
            if not least <= found <= stamp[0] or data != found.to_bytes(8, "big") * (PAGE // 8):
                wrong.append(f"{found}, when {least} was acknowledged and {stamp[0]} begun")
                return
        client.shutdown()

    with served(store, tmp_path / "run") as session:
        session.write(memoryview(bytes(BLOCK)), 0)
        writer, ended, wrong = session.connect(), threading.Event(), list[str]()
        readers = [threading.Thread(target=look, args=(session, ended, wrong)) for _ in range(3)]
        for reader in readers:
            reader.start()
        for number in range(1, STAMPS):
            stamp[0] = number
            if number % FREEZE == FREEZE // 2:
                # Whole again, in the layer after the snapshot.
                writer.pwrite(number.to_bytes(8, "big") * (BLOCK // 8), 0)
            else:
                writer.pwrite(number.to_bytes(8, "big") * (PAGE // 8), 0)
            stamp[1] = number
            if number % FREEZE == 0:
                session.snapshot(f"snapshot{number}")
        ended.set()
        for reader in readers:
            reader.join(30)
        writer.shutdown()
        assert wrong == []
        assert direct(session) > STAMPS // 10


def test_a_clone_reads_its_template_directly_until_it_writes(store: RadosStore, tmp_path: Path) -> None:
    with served(store, tmp_path / "template") as session:
        session.write(memoryview(b"t" * 2 * BLOCK), 0)
        session.snapshot("golden")
    catalog.create_volume(store, "clone", SIZE, origin="golden")
    with served(store, tmp_path / "clone", "clone") as session:
        assert read_directly(session, BLOCK + PAGE, 2 * PAGE) == b"t" * 2 * PAGE
        session.write(memoryview(b"c" * PAGE), BLOCK + PAGE)
        assert read(session, BLOCK + PAGE, 2 * PAGE) == b"c" * PAGE + b"t" * PAGE
        assert read_directly(session, 0) == b"t" * PAGE
        session.discard(0, 2 * PAGE)
        assert read(session, PAGE, 2 * PAGE) == bytes(PAGE) + b"t" * PAGE


def test_a_lost_object_is_an_error_and_is_named(store: RadosStore, tmp_path: Path) -> None:
    with served(store, tmp_path / "run") as session:
        session.write(memoryview(b"a" * BLOCK), 0)
        read_directly(session, 0)
        assert store._objects.remove(data_key(store.read_map("vol").current, 0))
        with pytest.raises(nbd.Error, match="Input/output error"):
            read(session, 0, PAGE)


def test_what_a_migration_hands_over_is_read_from_its_new_writer(store: RadosStore, tmp_path: Path) -> None:
    with served(store, tmp_path / "source") as source:
        source.write(memoryview(b"s" * BLOCK), 0)
        read_directly(source, 0)
        source.open(False)
        with served(store, tmp_path / "target", exclusive=False) as target:
            for letter in (b"1", b"2"):
                target.write(memoryview(letter * PAGE), 0)
                assert read(source, 0, PAGE) == letter * PAGE
                # What comes next is in another object.
                target.snapshot(f"after-{letter.decode()}")
            # And back: the migration failed.
            source.write(memoryview(b"3" * BLOCK), 0)
            assert read(target, 0, PAGE) == b"3" * PAGE
            target.close()
        source.open(True)
        assert read_directly(source, 0) == b"3" * PAGE


def taken_over(store: RadosStore) -> Session:
    """By a node that can't tell whether the server lives."""
    session = Session(open_store(store._spec, identity=Identity("elsewhere", "another boot", 1, 1)), "vol")
    session.open(True)
    return session


def test_one_who_was_taken_over_reads_no_more(store: RadosStore, tmp_path: Path) -> None:
    """Not even once, although nobody shuts the client out that only reads."""
    with served(store, tmp_path / "run") as session:
        session.write(memoryview(b"a" * BLOCK), 0)
        read_directly(session, 0)
        session.process.send_signal(signal.SIGSTOP)
        other = taken_over(store)
        other.write(memoryview(b"b" * PAGE), 0)
        session.process.send_signal(signal.SIGCONT)
        with pytest.raises(nbd.Error):
            read(session, 0, PAGE)
        other.shutdown()
        session.open(True)
        assert read_directly(session, 0) == b"b" * PAGE

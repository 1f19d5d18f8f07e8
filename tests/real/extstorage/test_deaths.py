# SPDX-License-Identifier: BSD-2-Clause
"""The files store when servers die, disks are full or read-only, and a writer is stopped and comes back."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from extstorage import catalog, fsck, gc
from extstorage.errors import ServerError, TooLargeForStoreError
from extstorage.files_store import FilesStore, create_store, open_store
from extstorage.hashing import hash_snapshot
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.progress import untold
from extstorage.scrub import scrub
from extstorage.session import Session
from extstorage.store import Info
from tests.datapath.checks import read
from tests.datapath.model import Model
from tests.datapath.nbd_server import NbdSession, RefusedError
from tests.real.loops import loop_device

pytestmark = pytest.mark.timeout(180)

SIZE = 8 << 20
WRITERS = 4
KILLS = 6


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB of its own for a store; what is mounted goes afterwards."""
    directory = tmp_path / "place"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


@contextlib.contextmanager
def served(store: Path, run: Path, name: str = "vol") -> Iterator[NbdSession]:
    run.mkdir(exist_ok=True)
    session = NbdSession(f"files:{store}", name, run)
    try:
        yield session
    finally:
        if session.process.poll() is None:
            session.kill()


class Writer(threading.Thread):
    """Writes to its own sectors until its server dies; the last request may or may not have happened."""

    def __init__(self, number: int, client: nbd.NBD, acknowledged: dict[int, bytes], seed: int) -> None:
        super().__init__()
        self.acknowledged = acknowledged
        self.in_doubt: tuple[int, bytes] = (0, b"")
        self._number = number
        self._client = client
        self._random = random.Random(seed)

    def run(self) -> None:
        with contextlib.suppress(nbd.Error):
            while True:
                sector = self._random.randrange(200) * WRITERS + self._number
                offset = sector * SECTOR + self._random.choice((0, BLOCK - 100 * SECTOR))
                data = struct.pack("<Q", self._random.getrandbits(64)) * (SECTOR // 8)
                self.in_doubt = offset, data
                self._client.pwrite(data, offset)
                self.acknowledged[offset] = data
                if self._random.random() < 0.02:
                    self._client.flush()


def test_kill_9_under_parallel_load(tmp_path: Path, seeds: list[int]) -> None:
    """Several writers in the same pages, snapshots in between: nothing acknowledged is lost, in any of them."""
    store = create_store(tmp_path / "store")
    for seed in seeds:
        name, run = f"vol{seed}", tmp_path / f"run{seed}"
        catalog.create_volume(store, name, SIZE)
        run.mkdir()
        chance = random.Random(seed)
        contents: list[dict[int, bytes]] = [{} for _ in range(WRITERS)]
        for kill in range(KILLS):
            server = NbdSession(f"files:{tmp_path}/store", name, run)
            for content in contents:
                for offset, data in content.items():
                    assert read(server, offset, SECTOR) == data, f"--seed={seed}, kill {kill}, offset {offset}"
            if kill % 2:
                server.snapshot(f"{name}.{kill}", Info(created=0.0))
            writers = [Writer(n, server.connect(), contents[n], chance.getrandbits(32)) for n in range(WRITERS)]
            for writer in writers:
                writer.start()
            time.sleep(chance.uniform(0.05, 0.4))
            server.kill()
            for writer in writers:
                writer.join()
                writer.acknowledged.pop(writer.in_doubt[0], None)
        assert sum(map(len, contents)) > 100
        assert not gc.collect(store).faults


def fill(directory: Path) -> Path:
    """Leave no space."""
    ballast = directory / "ballast"
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as stream:
        while True:
            stream.write(bytes(PAGE))
    return ballast


def write_until_full(server: NbdSession, model: Model, chance: random.Random) -> None:
    client = server.connect()
    for _ in range(5000):
        page, data = chance.randrange(SIZE // PAGE), chance.randbytes(PAGE)
        fault = refusal(client, data, page * PAGE)
        if fault:
            assert fault == "ENOSPC"
            model.older.setdefault(page, []).append(data)
            return
        model.write(data, page * PAGE)
    raise AssertionError("it is never full")


def refusal(client: nbd.NBD, data: bytes, offset: int) -> str:
    try:
        client.pwrite(data, offset)
    except nbd.Error as error:
        return str(error.errno)
    return ""


def check(server: NbdSession, model: Model) -> None:
    for page in model.pages.keys() | model.older.keys():
        assert read(server, page * PAGE, PAGE) in model.allowed(page), f"page {page}"


@pytest.mark.parametrize("what", ["store", "run"])
def test_a_full_file_system(place: Path, tmp_path: Path, what: str) -> None:
    """The guest hears of it, nothing acknowledged is lost, and there is no harm when there is space again."""
    store = place / "store" if what == "store" else tmp_path / "store"
    run = place / "run" if what == "run" else tmp_path / "run"
    chance = random.Random(3)
    catalog.create_volume(create_store(store), "vol", SIZE)
    model = Model(SIZE)
    with served(store, run) as server:
        model.write(b"first" * 1000, 0)
        server.write(memoryview(b"first" * 1000), 0)
        server.flush()
        for kind in ("terminate", "kill"):
            model.older.clear()
            ballast = fill(place)
            if what == "store":
                write_until_full(server, model, chance)
            else:
                # The marks of further blocks have no place; after a snapshot, those of any.
                with contextlib.suppress(ServerError):
                    server.snapshot(f"snap-{kind}", Info(created=0.0))
                with contextlib.suppress(nbd.Error):
                    server.write(memoryview(b"x" * PAGE), BLOCK)
                model.older.setdefault(BLOCK // PAGE, []).append(b"x" * PAGE)
            check(server, model)
            if kind == "kill":
                server.kill()
            ballast.unlink()
            if kind == "kill":
                server._start()
            check(server, model)
            data = chance.randbytes(3 * PAGE)
            server.write(memoryview(data), BLOCK - PAGE)
            model.write(data, BLOCK - PAGE)
            server.flush()
            check(server, model)
        server.snapshot("snap", Info(created=0.0))
        server.shutdown()
    session = Session(open_store(store), "vol")
    for page in model.pages:
        assert read(session, page * PAGE, PAGE) in model.allowed(page)
    session.shutdown()


def test_a_full_store_refuses_and_removes(place: Path) -> None:
    """No new volume, no half of one; what is there can be removed, and then there is space."""
    store = create_store(place / "store")
    catalog.create_volume(store, "vol", SIZE)
    session = Session(store, "vol")
    session.write(memoryview(os.urandom(SIZE)), 0)
    session.shutdown()
    fill(place)
    with pytest.raises(OSError, match="No space"):
        catalog.create_volume(store, "other", 4 << 40)
    assert store.names() == ["vol"]
    assert catalog.remove(store, "vol") > SIZE // 2
    catalog.create_volume(store, "other", SIZE)


def test_a_volume_is_as_large_as_a_file_on_ext4(tmp_path: Path) -> None:
    """What could not be written to its end is refused at once, and what is made can be."""
    image, place = tmp_path / "image", tmp_path / "place"
    with image.open("wb") as stream:
        stream.truncate(64 << 20)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", image], check=True)
    with loop_device(image) as device:
        subprocess.run(["mount", device, place], check=True)
        try:
            _fill_the_largest_volume(create_store(place / "store"))
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def _fill_the_largest_volume(store: FilesStore) -> None:
    with pytest.raises(TooLargeForStoreError):
        catalog.create_volume(store, "large", 16 << 40)
    end = (16 << 40) - BLOCK
    catalog.create_volume(store, "vol", end)
    session = Session(store, "vol")
    session.write(memoryview(b"x" * PAGE), end - PAGE)
    with pytest.raises(TooLargeForStoreError):
        session.grow(16 << 40)
    session.zero(end - BLOCK, BLOCK)
    session.shutdown()
    assert store.names() == ["vol"]


def test_a_read_only_store(place: Path, tmp_path: Path) -> None:
    """It can be read; everything else is refused with the reason."""
    store = create_store(place / "store")
    catalog.create_volume(store, "vol", SIZE)
    session = Session(store, "vol")
    session.write(memoryview(b"x" * PAGE), 0)
    session.snapshot("snap", Info(created=0.0))
    session.shutdown()
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    try:
        for name in ("vol", "snap"):
            with served(place / "store", tmp_path / name, name) as server:
                assert read(server, 0, PAGE) == b"x" * PAGE
                if name == "vol":
                    with pytest.raises(ServerError, match="Read-only file system"):
                        server.open(True)
                    with pytest.raises(RefusedError):
                        server.write(memoryview(b"y" * PAGE), 0)
                server.shutdown()
        with pytest.raises(OSError, match="Read-only file system"):
            catalog.create_volume(store, "other", SIZE)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    with served(place / "store", tmp_path / "vol") as server:
        server.open(True)
        server.write(memoryview(b"y" * PAGE), 0)
        server.shutdown()


def test_a_stopped_writer_keeps_the_volume_until_it_dies(tmp_path: Path) -> None:
    """Where the kernel knows who lives, a writer that is merely slow is not taken over; a dead one is, at once."""
    store = tmp_path / "store"
    catalog.create_volume(create_store(store), "vol", SIZE)
    with served(store, tmp_path / "one") as first, served(store, tmp_path / "two") as second:
        first.open(True)
        first.write(memoryview(b"1" * PAGE), 0)
        first.process.send_signal(signal.SIGSTOP)
        with pytest.raises(ServerError, match=f"process {first.process.pid}"):
            second.open(True)
        first.process.send_signal(signal.SIGCONT)
        first.write(memoryview(b"2" * PAGE), 0)
        first.flush()
        first.process.send_signal(signal.SIGSTOP)
        first.kill()
        second.open(True)
        assert read(second, 0, PAGE) == b"2" * PAGE
        second.write(memoryview(b"3" * PAGE), 0)
        # The dead one's marks do not count any more when it is started again.
        second.shutdown()
        first._start()
        first.open(True)
        assert read(first, 0, PAGE) == b"3" * PAGE
        first.shutdown()


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.choice([at for at, byte in enumerate(data) if byte])] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["maps/vol/map", "maps/vol/info.json", "data/*/*.pages", "content/??/??/*"])
def test_a_flipped_bit_is_named_and_harms_no_other(tmp_path: Path, what: str, seeds: list[int]) -> None:
    """The volume is served, so that Ganeti can attach and remove it; what is damaged gives errors, never other data."""
    for seed in seeds:
        place = tmp_path / f"store{seed}"
        store = create_store(place)
        catalog.create_volume(store, "image", SIZE)
        session = Session(store, "image")
        session.write(memoryview(b"i" * BLOCK), 0)
        session.snapshot("golden", Info(created=0.0))
        session.shutdown()
        hash_snapshot(store, "golden", untold)
        catalog.remove(store, "image")
        for name in ("vol", "sound"):
            catalog.create_volume(store, name, SIZE, origin="" if name == "sound" else "golden")
            session = Session(store, name)
            session.write(memoryview(name.encode() * 1000), BLOCK)
            session.shutdown()
        gc.collect(store)
        damaged = sorted(place.glob(what))
        if what.startswith("data"):
            owner = store.read_heads("vol").owner.hex()
            damaged = [path for path in damaged if owner in str(path)]
        flip(damaged[0], random.Random(seed))
        with served(place, tmp_path / f"run{seed}") as server:
            wrong = [page for page in range(0, SIZE // PAGE, 8) if may_read(server, page) not in (b"", right(page))]
            assert not wrong or what.startswith("content"), f"--seed={seed}: {wrong}"
            server.shutdown()
        with served(place, tmp_path / f"sound{seed}", "sound") as server:
            assert read(server, BLOCK, 5000) == b"sound" * 1000
            server.shutdown()
        damaged_names = {finding.name for finding in fsck.check(store)}
        damaged_names.update(*(damage.hits for damage in scrub(store, lambda _done, _all: None).damage))
        assert "vol" in damaged_names, f"--seed={seed}: nobody noticed"
        assert "sound" not in damaged_names
        catalog.remove(store, "vol")
        assert store.names() == ["golden", "sound"]


def right(page: int) -> bytes:
    if page < BLOCK // PAGE:
        return b"i" * PAGE
    return (b"vol" * 1000 if page == BLOCK // PAGE else b"").ljust(PAGE, b"\0")


def may_read(server: NbdSession, page: int) -> bytes:
    try:
        return read(server, page * PAGE, PAGE)
    except nbd.Error:
        return b""

# SPDX-License-Identifier: BSD-2-Clause
"""Content blocks in a store: named by their bytes, there only when durable, never removed after a touch."""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from extstorage import catalog, file_system, maps
from extstorage.errors import BrokenError
from extstorage.files_store import create_store, open_store
from extstorage.maps import Source
from extstorage.names import BLOCK, PAGE
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.datapath.memory_store import MemoryStore

DATA = os.urandom(3 * PAGE + 100)
DIGEST = hashlib.sha256(DATA).digest()
OTHER = os.urandom(BLOCK)


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return create_store(tmp_path / "store") if request.param == "files" else MemoryStore()


def put(store: Store, data: bytes) -> bytes:
    digest = hashlib.sha256(data).digest()
    store.put_content(digest, memoryview(data))
    store.sync_contents()
    return digest


def image(store: Store, name: str, *digests: bytes | None) -> None:
    store.create(name, maps.from_digests(len(digests) * BLOCK, bytes(16), digests), Info(created=0.0, image=True))


def read(session: Session, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    session.readinto(memoryview(buffer), offset)
    return bytes(buffer)


def test_a_block_is_kept_once(store: Store) -> None:
    assert store.put_content(DIGEST, memoryview(DATA))
    store.sync_contents()
    assert not store.put_content(DIGEST, memoryview(DATA))
    store.sync_contents()
    assert [digest for digest, _ in store.contents()] == [DIGEST]
    assert store.content_used(DIGEST) > 0
    assert store.content_used(bytes(32)) == 0


def test_a_clone_of_an_image_reads_and_writes_over_content(store: Store) -> None:
    image(store, "image", put(store, DATA), None, put(store, OTHER))
    catalog.create_volume(store, "vol", 4 * BLOCK, origin="image")
    session = Session(store, "vol")
    session.open(True)
    assert read(session, 0, len(DATA) + 50) == DATA + bytes(50)
    assert read(session, BLOCK - 10, 20) == bytes(20)
    assert read(session, 2 * BLOCK, BLOCK) == OTHER
    assert read(session, 3 * BLOCK, PAGE) == bytes(PAGE)
    session.write(memoryview(b"new"), 2 * BLOCK + 5)
    assert read(session, 2 * BLOCK, 100) == OTHER[:5] + b"new" + OTHER[8:100]
    session.shutdown()
    assert [e.hole for e in Session(store, "image").extents(BLOCK, 2 * BLOCK)][:2] == [True, False]


def test_a_touched_block_stays(store: Store) -> None:
    put(store, DATA)
    ((digest, version),) = store.contents()
    store.put_content(DIGEST, memoryview(DATA))
    assert store.remove_content(digest, version) == 0
    ((digest, version),) = store.contents()
    assert store.remove_content(digest, version) > 0
    assert list(store.contents()) == []
    assert store.remove_content(digest, version) == 0
    with pytest.raises(BrokenError):
        store.layer(Source(DIGEST, 0)).readinto(0, 0, memoryview(bytearray(1)))


def test_what_was_not_made_durable_is_not_there(tmp_path: Path) -> None:
    """A writer that dies before `sync_contents` leaves a file without a name, never a name without its bytes."""
    create_store(tmp_path / "store").put_content(DIGEST, memoryview(DATA))
    after = open_store(tmp_path / "store")
    assert list(after.contents()) == []
    assert after.put_content(DIGEST, memoryview(DATA))


def test_blocks_are_put_by_many_threads_while_one_makes_them_durable(store: Store) -> None:
    """A name never stands for less than the whole block, and two who put the same block leave one."""
    blocks = [bytes([number % 256, number // 256]) * (64 * PAGE) for number in range(100)]

    def one(number: int) -> None:
        data = blocks[number // 2]
        store.put_content(hashlib.sha256(data).digest(), memoryview(data))
        if number % 3 == 0:
            store.sync_contents()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(200)))
    store.sync_contents()
    assert {digest for digest, _ in store.contents()} == {hashlib.sha256(data).digest() for data in blocks}
    buffer = bytearray(128 * PAGE)
    for data in blocks:
        store.layer(Source(hashlib.sha256(data).digest(), 0)).readinto(0, 0, memoryview(buffer))
        assert buffer == data


def test_a_failed_sync_of_contents_is_never_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells once that bytes were lost, and a block with a name is taken for good by every import."""
    store = create_store(tmp_path / "store")
    store.put_content(DIGEST, memoryview(DATA))

    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(file_system, "syncfs", broken)
        with pytest.raises(OSError, match="bad disk"):
            store.sync_contents()
    with pytest.raises(OSError, match="bad disk"):
        store.sync_contents()
    assert open_store(tmp_path / "store").put_content(DIGEST, memoryview(DATA))


def test_the_file_system_is_asked_by_who_was_there_before_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that was opened later does not hear of an error that somebody else has heard of meanwhile."""
    store = create_store(tmp_path / "store")
    write = os.write
    place = str(tmp_path / "store/content")
    before: list[set[int]] = []
    asked: list[int] = []

    def noting(descriptor: int, data: memoryview) -> int:
        with os.scandir("/proc/self/fd") as entries:
            before.append({int(entry.name) for entry in entries if os.readlink(entry.path) == place})
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", noting)
    monkeypatch.setattr(file_system, "syncfs", asked.append)
    store.put_content(DIGEST, memoryview(DATA))
    store.sync_contents()
    assert asked
    assert set(asked) <= before[0]

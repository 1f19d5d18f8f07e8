# SPDX-License-Identifier: BSD-2-Clause
"""The collection over RADOS, while several clients of the cluster work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from extstorage import catalog, fsck, gc, maps, rados_space, rados_store, stats
from extstorage.names import BLOCK, PAGE
from extstorage.rados_pool import Change, Objects
from extstorage.session import Session
from extstorage.specs import RadosSpec
from extstorage.store import Info
from tests.datapath.history import read, snapshot, stress, write
from tests.real.extstorage.test_fsx import RadosWorld

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def world(new_spec: Callable[..., RadosSpec]) -> Iterator[RadosWorld]:
    found = RadosWorld(new_spec(lease="5"))
    yield found
    found.close()


def test_volumes_in_use_while_collections_run(world: RadosWorld) -> None:
    reports = stress(world.open, seed=20261121, steps=60)
    assert any(report.layers + report.shrunk for report in reports)


def test_blocks_that_a_whole_block_hides_are_freed_once(world: RadosWorld) -> None:
    store = world.open()
    catalog.create_volume(store, "vol", 4 * BLOCK)
    for block in range(4):
        write(store, "vol", block, b"1")
    snapshot(store, "vol", "golden")
    catalog.create_volume(store, "clone", 4 * BLOCK, origin="golden")
    for name in ("vol", "golden"):
        catalog.remove(store, name)
    assert gc.collect(store).freed == 0
    session = Session(store, "clone")
    session.write(memoryview(bytes(BLOCK)), 0)
    session.shutdown()
    snapshot(store, "clone", "later")
    first, second = gc.collect(store), gc.collect(store)
    assert (first.shrunk, second.shrunk, second.freed) == (1, 0, 0)
    assert first.freed > 0
    assert [read(store, "clone", block)[:1] for block in range(4)] == [b"\0", b"1", b"1", b"1"]
    for name in ("clone", "later"):
        catalog.remove(store, name)
    gc.collect(store)
    assert list(store.layers()) == []


def test_what_takes_too_long_to_remove_is_left_to_the_collection(
    world: RadosWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_REMOVAL", 0.0)
    monkeypatch.setattr(rados_space, "_PORTION", 2)
    store = world.open()
    catalog.create_volume(store, "vol", 5 * BLOCK)
    for block in (0, 1, 3, 4):
        write(store, "vol", block)
    assert catalog.remove(store, "vol") == 0
    assert store.names() == []
    assert len(list(store.layers())) == 1
    assert gc.collect(store).freed > 0
    assert list(store.layers()) == []


def test_a_body_that_clones_share_is_read_once(world: RadosWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()
    digests = [number.to_bytes(32, "big") for number in range(3000)]
    store.create("image", maps.from_digests(3000 * BLOCK, bytes(16), digests), Info(created=1.0, image=True))
    for number in range(5):
        catalog.create_volume(store, f"clone{number}", 3000 * BLOCK, origin="image")
    read: list[str] = []
    real = Objects.read

    def counted(objects: Objects, key: str, length: int, offset: int = 0) -> bytes:
        if key.startswith("body."):
            read.append(key)
        return real(objects, key, length, offset)

    monkeypatch.setattr(Objects, "read", counted)
    assert gc.collect(store).maps == 6
    assert len(read) == 1
    read.clear()
    assert stats.of_store(store).images == 1
    assert len(read) == 1


def test_a_body_that_is_missing_or_damaged_is_told(world: RadosWorld) -> None:
    store = world.open()
    digests = [number.to_bytes(32, "big") for number in range(3000)]
    store.create("image", maps.from_digests(3000 * BLOCK, bytes(16), digests), Info(created=1.0, image=True))
    catalog.create_volume(store, "clone", 3000 * BLOCK, origin="image")
    assert isinstance(store, rados_store.RadosStore)
    objects = store._objects
    (key,) = filter(re.compile("body.").match, objects.keys())
    whole = objects.read(key, BLOCK)
    for damaged in (whole[:-1], whole + b"x", b"xx" + whole[2:], None):
        objects.remove(key)
        if damaged is not None:
            objects.apply(key, Change().write_full(damaged))
        assert len(gc.collect(store).faults) == 2
        assert stats.of_store(store).broken == 2
        assert {found.name for found in fsck.check(store)} == {"image", "clone"}
    objects.apply(key, Change().write_full(whole))
    assert not gc.collect(store).faults


def test_of_many_blocks_some_are_asked_what_they_occupy(world: RadosWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()
    catalog.create_volume(store, "vol", 40 * BLOCK)
    session = Session(store, "vol")
    for block in range(40):
        session.write(memoryview(b"x" * PAGE), block * BLOCK)
    session.shutdown()
    assert store.stored().bytes == 40 * PAGE
    asked: list[str] = []
    real = Objects.attribute

    def counted(objects: Objects, key: str, name: str) -> bytes:
        asked.append(key)
        return real(objects, key, name)

    monkeypatch.setattr(Objects, "attribute", counted)
    monkeypatch.setattr(rados_space, "_LARGE_SAMPLE", 8)
    # Some are in the index and not there.
    assert store.stored().bytes == pytest.approx(40 * PAGE, rel=0.3)
    assert 8 <= len(asked) <= 16

# SPDX-License-Identifier: BSD-2-Clause
"""The collection over RADOS, while several clients of the cluster work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from extstorage import catalog, gc, rados_store
from extstorage.names import BLOCK
from extstorage.session import Session
from extstorage.stores import RadosSpec
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
    monkeypatch.setattr(rados_store, "_PORTION", 2)
    store = world.open()
    catalog.create_volume(store, "vol", 5 * BLOCK)
    for block in (0, 1, 3, 4):
        write(store, "vol", block)
    assert catalog.remove(store, "vol") == 0
    assert store.names() == []
    assert len(list(store.layers())) == 1
    assert gc.collect(store).freed > 0
    assert list(store.layers()) == []

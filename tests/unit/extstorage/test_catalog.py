# SPDX-License-Identifier: BSD-2-Clause
"""Making and removing volumes: which origins are taken, what may be repeated, and what is listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from extstorage import catalog, maps
from extstorage.errors import (
    AlreadyThereError,
    NotAnOriginError,
    SmallerThanOriginError,
    UnknownOriginError,
)
from extstorage.files_store import create_store
from extstorage.names import BLOCK
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.unit.extstorage.sessions import A, read


def test_origins_are_judged(store: Store) -> None:
    with pytest.raises(UnknownOriginError):
        catalog.create_volume(store, "clone", BLOCK, origin="nothing")
    with pytest.raises(NotAnOriginError):
        catalog.create_volume(store, "clone", 3 * BLOCK, origin="vol")
    Session(store, "vol").snapshot("snap", Info(created=0.0))
    with pytest.raises(SmallerThanOriginError, match="12 MiB"):
        catalog.create_volume(store, "clone", BLOCK, origin="snap")
    assert store.names() == ["snap", "vol"]


def test_create_may_be_repeated_but_not_changed(store: Store) -> None:
    catalog.create_volume(store, "vol", 3 * BLOCK)
    with pytest.raises(AlreadyThereError):
        catalog.create_volume(store, "vol", 4 * BLOCK)


def test_a_detached_volume_is_found_by_its_disk_name(store: Store) -> None:
    catalog.create_volume(store, "old", BLOCK, cname="snf-vol-7")
    session = Session(store, "old")
    session.write(A, 0)
    session.shutdown()
    assert catalog.of_disk_name(store, "snf-vol-7") == ["old"]
    assert catalog.of_disk_name(store, "snf-vol-8") == []
    with pytest.raises(AlreadyThereError):
        catalog.adopt(store, "old", "new", 2 * BLOCK)
    catalog.adopt(store, "old", "new", BLOCK)
    assert read(Session(store, "new")) == bytes(A)
    assert "old" not in store.names()


def test_a_clone_of_100_gib_costs_a_map(store: Store) -> None:
    catalog.create_volume(store, "big", 100 << 30)
    session = Session(store, "big")
    session.write(A, 50 << 30)
    session.snapshot("image", Info(created=0.0, image=True))
    before = list(store.layers())
    catalog.create_volume(store, "clone", 100 << 30, origin="image")
    assert list(store.layers()) == before
    assert len(maps.encode(store.read_map("clone"))) < BLOCK / 4
    assert read(Session(store, "clone"), 50 << 30) == bytes(A)


def test_a_broken_map_is_listed_and_can_be_removed(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    catalog.create_volume(store, "sound", BLOCK)
    session = Session(store, "sound")
    session.write(A, 0)
    session.shutdown()
    (tmp_path / "store/maps/vol/map").write_bytes(b"nonsense" * 20)
    assert [item.kind for item in catalog.items(store)] == ["volume", "broken"]
    catalog.remove(store, "vol")
    assert [item.kind for item in catalog.items(store)] == ["volume"]

# SPDX-License-Identifier: BSD-2-Clause
"""Flushes that fail: what a guest is told, also by later servers, until somebody has looked at it."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from extstorage import catalog, fsck
from extstorage.errors import (
    DoubtfulError,
)
from extstorage.file_layers import FileLayer
from extstorage.files_store import create_store
from extstorage.maps import Source
from extstorage.names import BLOCK, PAGE
from extstorage.session import Session
from extstorage.store import Layer, Store
from tests.datapath.memory_store import MemoryLayer, MemoryStore
from tests.unit.extstorage.sessions import A, B, die, read


def test_a_full_store_is_an_error_until_there_is_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    session.write(A, 0)

    def full(_layer: MemoryLayer, _pages: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryLayer, "save_pages", full)
        with pytest.raises(OSError, match="no space"):
            session.flush()
    session.flush()
    store.die(random.Random(1))
    assert read(Session(store, "vol")) == bytes(A)


def test_a_failed_sync_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    session.write(A, 0)

    def broken(_layer: MemoryLayer) -> None:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryLayer, "sync", broken)
        with pytest.raises(OSError, match="bad disk"):
            session.flush()
    with pytest.raises(OSError, match="bad disk"):
        session.flush()


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_a_successor_knows_that_a_sync_failed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel told it once, to a process that is dead, and calls the pages clean. A guest must not be told so."""
    store: Store = create_store(tmp_path / "store") if kind == "files" else MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    (tmp_path / "run").mkdir()
    session = Session(store, "vol", tmp_path / "run")
    session.open(True)
    session.write(A, 0)

    def broken(_layer: Layer) -> None:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(FileLayer if kind == "files" else MemoryLayer, "sync", broken)
        with pytest.raises(OSError, match="bad disk"):
            session.flush()
    for _ in range(2):
        die(session)
        session = Session(store, "vol", tmp_path / "run")
        session.resume()
        session.write(B, PAGE)
        assert read(session) + read(session, PAGE) == bytes(A) + bytes(B)
        with pytest.raises(OSError, match="bad disk"):
            session.flush()
        assert "bad disk" in session.loss
    assert not fsck.check(store, repair=True)[0].repaired
    die(session)
    elsewhere = Session(store, "vol")
    with pytest.raises(DoubtfulError, match="may be lost: .*bad disk.*fsck --repair vol"):
        elsewhere.open(True)
    elsewhere.open(False)
    with pytest.raises(DoubtfulError):
        elsewhere.write(A, 0)
    assert "bad disk" in fsck.check(store)[0].text
    assert fsck.check(store, repair=True)[0].repaired
    assert not fsck.check(store)
    elsewhere = Session(store, "vol")
    elsewhere.open(True)
    elsewhere.write(B, 0)
    elsewhere.flush()
    assert read(elsewhere) == bytes(B)
    elsewhere.shutdown()


def test_a_flush_that_can_not_open_the_layer_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor has marks to bring into the store; its first flush fails before anything was written."""
    run = tmp_path / "run"
    run.mkdir()
    store = MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    dead = Session(store, "vol", run)
    dead.open(True)
    dead.write(A, 0)
    store.drop_locks()
    session = Session(store, "vol", run)
    session.open(True)
    layer = MemoryStore.layer

    def fails(of: MemoryStore, source: Source, *, writable: bool = False) -> Layer:
        if writable:
            raise OSError(errno.EMFILE, "too many open files")
        return layer(of, source)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "layer", fails)
        with pytest.raises(OSError, match="too many"):
            session.flush()
    session.flush()
    store.die(random.Random(1))
    assert read(Session(store, "vol")) == bytes(A)

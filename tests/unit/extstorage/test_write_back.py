# SPDX-License-Identifier: BSD-2-Clause
"""The kernel is told to begin with what the next flush would wait for; nothing depends on whether it does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from extstorage import catalog, file_system
from extstorage.files_store import create_store
from extstorage.names import BLOCK, PAGE
from extstorage.session import Session
from extstorage.store import Info


@pytest.fixture
def session(tmp_path: Path) -> Session:
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    return Session(store, "vol")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors of which the kernel was told."""
    descriptors: list[int] = []
    monkeypatch.setattr(file_system, "begin_sync", descriptors.append)
    return descriptors


def test_a_disk_is_told_to_begin_only_when_there_is_something_to_flush(session: Session, told: list[int]) -> None:
    assert not session.is_durable
    session.begin_flush()
    session.open(True)
    session.begin_flush()
    assert not told
    session.write(memoryview(bytes(PAGE)), 0)
    session.begin_flush()
    assert len(told) == 1
    session.flush()
    session.begin_flush()
    assert len(told) == 1
    session.write(memoryview(bytes(PAGE)), 0)
    session.snapshot("snap", Info(created=0.0))
    session.begin_flush()
    assert len(told) == 1
    session.shutdown()


def test_to_begin_is_a_system_call_that_can_fail(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file_system.begin_sync(file.fileno())
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        file_system.begin_sync(writing)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(("number", "is_lost"), [(errno.EUCLEAN, True), (errno.EIO, True), (errno.ENOSYS, False)])
def test_what_could_not_even_begin_is_not_called_flushed(
    session: Session, monkeypatch: pytest.MonkeyPatch, number: int, is_lost: bool
) -> None:
    """ext4 drops pages for which it finds no place, and tells the caller alone; the next fdatasync(2) says nothing."""

    def fails(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(file_system, "begin_sync", fails)
    session.open(True)
    session.write(memoryview(bytes(PAGE)), 0)
    with pytest.raises(OSError, match=os.strerror(number)):
        session.begin_flush()
    if not is_lost:
        session.flush()
        return
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(number)):
            session.flush()
    assert os.strerror(number) in session.loss


def test_nothing_begins_while_a_flush_is_under_way(session: Session, told: list[int]) -> None:
    session.open(True)
    session.write(memoryview(bytes(PAGE)), 0)
    with session._volume._flushing:
        session.begin_flush()
    assert not told
    session.begin_flush()
    assert told

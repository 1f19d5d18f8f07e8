# SPDX-License-Identifier: BSD-2-Clause
"""Files that survive a crash, and locks that die with their owner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ganeti_plugin import files
from ganeti_plugin.errors import StateError

TREE = Path(__file__).parents[3]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    files.write_atomically(path, b"old", mode=0o600)
    inode = path.stat().st_ino
    files.write_atomically(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != inode
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    files.write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / f".state.{os.getpid()}.tmp").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        files.write_atomically(tmp_path / "state", b"x")
    assert victim.read_bytes() == b"mine"


def test_removing_tells_whether_there_was_something(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert files.remove(tmp_path / "a")
    assert not files.remove(tmp_path / "a")


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(StateError, match="is larger than 4 bytes"):
        files.read_bounded(tmp_path / "a", 4)


def test_a_lock_excludes_and_shared_locks_do_not(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    busy = pytest.raises(files.LockedError, match=f"{path} is locked by another process")
    with files.locked(path), busy, files.locked(path, timeout=0.05):
        pass
    with files.locked(path, shared=True), files.locked(path, shared=True, timeout=0.05):
        pass
    with files.locked(path, timeout=0.05):
        pass


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import os, sys; from pathlib import Path; from ganeti_plugin import files\n"
        f"with files.locked(Path({str(path)!r})): print('held', flush=True); os.read(0, 1)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner, owner.stdin, owner.stdout:
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(files.LockedError), files.locked(path, timeout=0.05):
            pass
        owner.kill()
        with files.locked(path, timeout=10):
            pass

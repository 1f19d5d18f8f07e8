# SPDX-License-Identifier: BSD-2-Clause
"""One run for one disk, a bounded number of helper VMs, and hands off a running instance."""

from __future__ import annotations

from pathlib import Path

import pytest

from snf_image import locks
from snf_image.locks import BusyDiskError, QueueError, RunningInstanceError
from snf_image.targets import Kind, Place, Target


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DIRECTORY", tmp_path / "run")


def target(identity: str, index: int = 0) -> Target:
    return Target(place=Place(index=index, kind=Kind.DEVICE, path="/dev/x"), fd=-1, identity=identity, size=1)


def test_a_disk_is_held_by_one(tmp_path: Path) -> None:
    """V08."""
    with locks.disks([target("a"), target("b", 1)]):
        with pytest.raises(BusyDiskError, match="disk 1 is in use"), locks.disks([target("b", 1)]):
            pass
        with locks.disks([target("c")]):
            pass
    with locks.disks([target("b"), target("a")]):
        pass
    assert not list((tmp_path / "run").glob("disk-*"))


def test_locks_of_killed_runs_are_swept(tmp_path: Path) -> None:
    """V07."""
    (tmp_path / "run").mkdir()
    for name in ("disk-a.lock", "disk-z.lock"):
        (tmp_path / "run" / name).touch()
    with locks.disks([target("a")]):
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["disk-a.lock"]
        with locks.disks([target("b")]), pytest.raises(BusyDiskError), locks.disks([target("a")]):
            pass


def test_places(tmp_path: Path) -> None:
    """V13."""
    with locks.turn(2, 0), locks.turn(2, 0):
        with pytest.raises(QueueError, match="2 helper VMs are running"), locks.turn(2, 0.2):
            pass
        with locks.turn(3, 0):
            pass
    with locks.turn(1, 0):
        pass


@pytest.mark.parametrize(
    ("pid", "command", "refuses"),
    [
        ("7", b"/usr/bin/kvm\0-name\0web1,debug-threads=on\0", True),
        ("7", b"/usr/bin/kvm\0-name\0web1\0", True),
        ("7", b"/usr/bin/kvm\0-name\0web11\0", False),
        ("7", b"/usr/sbin/cron\0", False),
        ("8", b"/usr/bin/kvm\0-name\0web1\0", False),
        ("nonsense", b"", False),
    ],
)
def test_running_instance(tmp_path: Path, pid: str, command: bytes, refuses: bool) -> None:
    (tmp_path / "web1").write_text(f"{pid}\n")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_bytes(command)
    if refuses:
        with pytest.raises(RunningInstanceError, match="web1 is running"):
            locks.refuse_running("web1", tmp_path, tmp_path)
    else:
        locks.refuse_running("web1", tmp_path, tmp_path)
    locks.refuse_running("web2", tmp_path, tmp_path)

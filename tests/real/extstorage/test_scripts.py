# SPDX-License-Identifier: BSD-2-Clause
"""The provider's scripts in the orders in which Ganeti calls them, repeated, interrupted, and in no order at all."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from extstorage import apply, devices, loop_device
from extstorage.errors import NoDeviceError
from tests.real.extstorage.provider import (
    DEVICES,
    RUN,
    SCRIPTS,
    STORE,
    Client,
    command,
    do,
    eventually,
    kill_server,
    new_name,
    qemu_io,
    refused,
    script,
    server_pid,
    store_beside,
    traces,
    uri,
    without_fork_server,
)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def volume() -> Iterator[str]:
    name = new_name()
    do("create", name, VOL_SIZE="64")
    yield name
    for one in (f"{name}.snap", name):
        do("detach", one)
        do("remove", one)
        assert traces(one) == []


def test_add_stop_start_remove(volume: str) -> None:
    """instance add, stop, start: the order of Ganeti 3.0.2."""
    answer = do("attach", volume)
    assert answer == f"\nkvm:{uri(volume)},file.reconnect-delay=30"
    do("open", volume, VOL_OPEN_EXCLUSIVE="True")
    do("setinfo", volume, VOL_METADATA="originstname+web1")
    qemu_io(volume, "write -P 7 0 1M", "flush")
    for _ in range(2):
        do("attach", volume)
        do("detach", volume)
        assert not (RUN / volume).exists()
    do("attach", volume)
    do("open", volume, VOL_OPEN_EXCLUSIVE="True")
    qemu_io(volume, "read -P 7 0 1M", "read -P 0 1M 1M")


def test_export_of_a_running_instance(volume: str) -> None:
    snap = f"{volume}.snap"
    do("attach", volume)
    do("open", volume, VOL_OPEN_EXCLUSIVE="True")
    qemu_io(volume, "write -P 1 0 64k")
    for value in (1, 2):
        do("snapshot", volume, VOL_SNAPSHOT_NAME=snap, VOL_SNAPSHOT_SIZE="64")
        qemu_io(volume, "write -P 2 0 64k")
        do("attach", snap)
        do("open", snap, VOL_OPEN_EXCLUSIVE="True")
        qemu_io(snap, f"read -P {value} 0 64k", readonly=True)
        failed = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 4k", uri(snap)], capture_output=True)
        assert failed.returncode != 0
    do("detach", snap)
    do("remove", snap)
    assert traces(snap) == []


def test_grow_with_and_without_a_server(volume: str) -> None:
    do("grow", volume, VOL_SIZE="64", VOL_NEW_SIZE="96")
    do("attach", volume)
    do("grow", volume, VOL_SIZE="96", VOL_NEW_SIZE="128")
    do("grow", volume, VOL_SIZE="96", VOL_NEW_SIZE="128")
    qemu_io(volume, "write -P 3 127M 1M")
    assert "shrink" in refused("grow", volume, VOL_SIZE="128", VOL_NEW_SIZE="64")


def test_bad_calls_are_one_sentence_and_leave_nothing() -> None:
    """L08."""
    name = new_name()
    before = sorted(os.listdir(STORE / "maps")) if STORE.exists() else []
    assert "bogus" in refused("create", name, VOL_SIZE="64", EXTP_BOGUS="1")
    assert "neither an image nor a snapshot" in refused("create", name, VOL_SIZE="64", EXTP_ORIGIN="nothing")
    assert "VOL_SIZE" in refused("create", name)
    assert "VOL_SIZE" in refused("create", name, VOL_SIZE="many")
    assert "not acceptable" in refused("create", name, VOL_SIZE=str(1 << 40))
    for bad in ("../../etc", "a b", "a\nb", "$(id)", "-x", "x" * 73, "\u00e9", "a/b"):
        assert "not acceptable" in refused("create", bad, VOL_SIZE="64")
        assert "not acceptable" in refused("create", name, VOL_SIZE="64", EXTP_ORIGIN=bad)
        assert "which is not the name" in refused("create", name, VOL_SIZE="64", EXTP_STORE=bad)
    assert "no data to reuse" in refused("create", name, VOL_SIZE="64", EXTP_REUSE_DATA="True")
    assert "there is no volume" in refused("attach", name)
    assert "there is no volume" in refused("grow", name, VOL_SIZE="1", VOL_NEW_SIZE="2")
    for action in ("detach", "remove", "close"):
        do(action, name)
    assert traces(name) == []
    assert sorted(os.listdir(STORE / "maps")) == before


def test_a_disk_smaller_than_its_origin(volume: str) -> None:
    do("snapshot", volume, VOL_SNAPSHOT_NAME=f"{volume}.snap", VOL_SNAPSHOT_SIZE="64")
    name = new_name()
    assert "64 MiB" in refused("create", name, VOL_SIZE="32", EXTP_ORIGIN=f"{volume}.snap")
    assert traces(name) == []


def test_a_broken_volume_can_be_attached_and_removed(volume: str) -> None:
    path = STORE / "maps" / volume / "map"
    good = path.read_bytes()
    path.write_bytes(b"x" * 1000)
    do("attach", volume)
    assert str(path) in refused("open", volume, VOL_OPEN_EXCLUSIVE="True")
    failed = subprocess.run(["qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", uri(volume)], capture_output=True)
    assert failed.returncode != 0 or b"failed" in failed.stdout
    # Once repaired, the next attach makes it usable.
    path.write_bytes(good)
    do("attach", volume)
    do("open", volume, VOL_OPEN_EXCLUSIVE="True")
    qemu_io(volume, "write -P 1 0 64k")
    do("detach", volume)
    path.write_bytes(good[:100])
    do("attach", volume)
    do("attach", volume)
    do("detach", volume)
    do("remove", volume)


@pytest.fixture
def stores() -> Iterator[Path]:
    """Two stores beside the default one: "second" is there, "away" is not mounted."""
    with store_beside("second", Path("/var/lib/snf-archipelago/second"), away="files:/nowhere") as folder:
        yield folder


def test_a_volume_is_found_in_its_store_whatever_the_parameter_says(stores: Path) -> None:
    name = new_name()
    assert "main, second, away" in refused("create", name, VOL_SIZE="64", EXTP_STORE="third")
    assert "/nowhere" in refused("create", name, VOL_SIZE="64", EXTP_STORE="away")
    do("create", name, VOL_SIZE="64", EXTP_STORE="second")
    assert (stores / "maps" / name).is_dir()
    do("attach", name, EXTP_STORE="main")
    do("open", name, VOL_OPEN_EXCLUSIVE="True")
    qemu_io(name, "write -P 4 0 1M", "flush")
    kill_server(name)
    do("grow", name, VOL_SIZE="64", VOL_NEW_SIZE="96", EXTP_STORE="away")
    do("detach", name)
    do("snapshot", name, VOL_SNAPSHOT_NAME="golden", VOL_SNAPSHOT_SIZE="96")
    clone = new_name()
    do("create", clone, VOL_SIZE="96", EXTP_ORIGIN="golden")
    do("attach", clone)
    qemu_io(clone, "read -P 4 0 1M", "read -P 0 64M 1M")
    for one in (name, clone):
        do("detach", one)
        do("remove", one, EXTP_STORE="away")
    # It may be in the store that can't be asked: neither gone nor unattachable, and not leaked by a removal.
    do("attach", name)
    assert "/nowhere" in refused("open", name, VOL_OPEN_EXCLUSIVE="True")
    do("detach", name)
    assert "'away'" in refused("remove", name)
    assert command("snapshot", "remove", "golden").returncode == 0
    assert os.listdir(stores / "maps") == []


def test_a_store_that_cannot_be_written_or_read_changes_nothing(stores: Path) -> None:
    name, other = new_name(), new_name()
    do("create", name, VOL_SIZE="64", EXTP_STORE="second")
    mine = stores / "store.json"
    facts = mine.read_text()

    def check(reason: str) -> None:
        assert reason in refused("create", other, VOL_SIZE="64", EXTP_STORE="second")
        do("attach", name)
        assert reason in refused("open", name, VOL_OPEN_EXCLUSIVE="True")
        do("detach", name)
        assert reason in refused("remove", name)

    subprocess.run(["mount", "--bind", stores, stores], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", stores], check=True)
        check("Read-only file system")
    finally:
        subprocess.run(["umount", stores], check=True)
    for foreign in (facts.replace('"version": ', '"version": 9'), facts.replace("snf-archipelago", "other"), "{"):
        mine.write_text(foreign)
        check("is not a store of this version")
    mine.write_text(facts)
    do("attach", name)
    do("open", name, VOL_OPEN_EXCLUSIVE="True")
    do("detach", name)
    do("remove", name)
    assert traces(other) == []
    assert os.listdir(stores / "maps") == []


def test_a_guest_waits_for_its_store(stores: Path) -> None:
    """Its server died, and the store is away for a moment: that is a pause and no error."""
    name = new_name()
    do("create", name, VOL_SIZE="64", EXTP_STORE="second")
    do("attach", name)
    do("open", name, VOL_OPEN_EXCLUSIVE="True")
    qemu_io(name, "write -P 6 0 1M")
    away = stores.with_name("second.away")
    guest = Client(name, "read -P 6 0 1M")
    stores.rename(away)
    kill_server(name)
    guest.say("read -P 6 0 1M", "write -P 7 0 1M", "read -P 7 0 1M")
    time.sleep(3)
    away.rename(stores)
    guest.finish()
    do("detach", name)
    do("remove", name)


def test_a_volume_outlives_its_disk_and_is_reused(volume: str) -> None:
    do("remove", volume)
    kept = new_name()
    do("create", kept, VOL_SIZE="64", VOL_CNAME=kept, EXTP_REUSE_DATA="False")
    do("attach", kept)
    qemu_io(kept, "write -P 6 0 1M")
    kill_server(kept)
    do("detach", kept)
    do("remove", kept, EXTP_KEEP="True")
    assert "not 134217728" in refused("create", volume, VOL_SIZE="128", VOL_CNAME=kept, EXTP_REUSE_DATA="True")
    for _ in range(2):
        do("create", volume, VOL_SIZE="64", VOL_CNAME=kept, EXTP_REUSE_DATA="True")
    do("attach", volume)
    qemu_io(volume, "read -P 6 0 1M")
    assert traces(kept) == []


def test_block_device(volume: str, tmp_path: Path) -> None:
    device = do("attach", volume, EXTP_ACCESS="kernelspace")
    assert device.startswith("/dev/loop")
    assert device != "/dev/loop0"
    assert Path(device).is_block_device()
    do("open", volume, VOL_OPEN_EXCLUSIVE="True")
    assert do("attach", volume, EXTP_ACCESS="kernelspace") == device
    # H16: the guest makes its disk look like a container that names a file of the node; bytes stay bytes.
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", tmp_path / "q", "1M"], check=True
    )
    data = (tmp_path / "q").read_bytes()[: 128 << 10] + os.urandom(4 << 20)
    data = data[: 4 << 20]
    # Large writes at once: a FUSE server once mixed them up, and both ways of reading agreed on the result.
    subprocess.run(["dd", f"of={device}", "bs=4M", "iflag=fullblock", "oflag=direct"], input=data, check=True)
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    through_device = subprocess.run(["head", "-c", "4M", device], check=True, capture_output=True).stdout
    through_nbd = subprocess.run(["nbdcopy", uri(volume), "-"], check=True, capture_output=True).stdout
    assert through_device == through_nbd[: 4 << 20] == data
    # The record says another device than ours: attach asks the kernel and does not believe it (threats L14).
    (DEVICES / volume / "loop").write_text("0\n")
    again = do("attach", volume, EXTP_ACCESS="kernelspace")
    assert again != "/dev/loop0"
    do("detach", volume)
    again = do("attach", volume, EXTP_ACCESS="kernelspace").rstrip("\n")
    assert subprocess.run(["head", "-c", "4M", again], check=True, capture_output=True).stdout == data
    do("detach", volume)
    assert not (DEVICES / volume).exists()


def test_a_block_device_that_is_in_use_is_not_cut_off(volume: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = do("attach", volume, EXTP_ACCESS="kernelspace")
    do("open", volume, VOL_OPEN_EXCLUSIVE="True")
    monkeypatch.setattr(loop_device, "IN_USE_TIMEOUT", 0.5)  # a detach waits for 20 s
    with open(device, "r+b", buffering=0) as user:
        user.write(b"y" * 4096)
        with pytest.raises(NoDeviceError, match="still in use"):
            devices.stop_device(apply.site(), volume)
        user.seek(1 << 20)
        user.write(b"z" * 4096)
        os.fsync(user.fileno())
    do("detach", volume)
    do("attach", volume)
    qemu_io(volume, "read -P 0x79 0 4k", "read -P 0x7a 1M 4k")


def test_a_killed_server_comes_back_with_everything(volume: str) -> None:
    do("attach", volume)
    do("open", volume, VOL_OPEN_EXCLUSIVE="True")
    qemu_io(volume, "write -P 9 0 3M")
    kill_server(volume)
    do("attach", volume)
    qemu_io(volume, "read -P 9 0 3M", "write -P 8 5M 4k")
    kill_server(volume)
    do("detach", volume)
    do("attach", volume)
    qemu_io(volume, "read -P 9 0 3M", "read -P 8 5M 4k")


@pytest.mark.parametrize("seed", range(2))
def test_scripts_in_any_order(volume: str, seed: int) -> None:
    """Whatever the order, nothing but a refusal in one sentence happens, and the data stays."""
    chance = random.Random(seed)
    do("attach", volume)
    qemu_io(volume, "write -P 5 0 1M", "flush")
    calls = {
        "create": {"VOL_SIZE": "64"},
        "attach": {},
        "detach": {},
        "open": {"VOL_OPEN_EXCLUSIVE": "True"},
        "close": {},
        "verify": {},
        "setinfo": {"VOL_METADATA": "originstname+x"},
        "snapshot": {"VOL_SNAPSHOT_NAME": f"{volume}.snap", "VOL_SNAPSHOT_SIZE": "64"},
    }
    for _ in range(25):
        action = chance.choice(sorted(calls))
        done = script(action, volume, **calls[action])
        assert done.returncode == 0, f"{action}: {done.stderr}"
        if chance.random() < 0.15 and server_pid(volume):
            kill_server(volume)
    do("attach", volume)
    qemu_io(volume, "read -P 5 0 1M")


@pytest.mark.parametrize("seed", range(2))
def test_killed_scripts_leave_nothing_that_a_repetition_does_not_mend(seed: int) -> None:
    """Each script is killed at a random point, then repeated, with data in between that must stay.

    Without the fork server the kill is that of the action itself.
    """
    chance = random.Random(seed)
    name, snap = new_name(), "killed"
    device = {"EXTP_ACCESS": "kernelspace"} if seed % 2 else {}
    calls: list[tuple[str, str, dict[str, str]]] = [
        ("create", name, {"VOL_SIZE": "64"}),
        ("attach", name, device),
        ("open", name, {"VOL_OPEN_EXCLUSIVE": "True"}),
        ("setinfo", name, {"VOL_METADATA": "originstname+x"}),
        ("grow", name, {"VOL_SIZE": "64", "VOL_NEW_SIZE": "80"}),
        ("snapshot", name, {"VOL_SNAPSHOT_NAME": f"{name}.snap", "VOL_SNAPSHOT_SIZE": "80"}),
        ("attach", f"{name}.snap", device),
        ("detach", f"{name}.snap", {}),
        ("remove", f"{name}.snap", {}),
        ("open", name, {"VOL_OPEN_EXCLUSIVE": "False"}),
        ("close", name, {}),
        ("detach", name, {}),
        ("attach", name, {}),
    ]
    with without_fork_server() if seed % 2 else contextlib.nullcontext():
        try:
            for number, (action, volume, variables) in enumerate(calls):
                _kill_after(action, volume, chance.uniform(0.0, 0.15), variables)
                do(action, volume, **variables)
                if (action, volume) == ("open", name) and number < 4:
                    qemu_io(name, "write -P 7 0 5M")
            assert do("attach", name)
            qemu_io(name, "read -P 7 0 5M", "read -P 0 64M 1M", readonly=True)
        finally:
            after = chance.uniform(0.0, 0.15)
            _kill_after("remove", snap, after, {})
            _kill_after("remove", name, after, {})
            if (STORE / "maps" / name).exists():
                do("attach", name)
            do("detach", name)
            do("remove", name)
        eventually(lambda: traces(name) == [])
        assert command("volume", "list").returncode == 0


def _kill_after(action: str, name: str, seconds: float, variables: dict[str, str]) -> None:
    environment = {"PATH": os.environ["PATH"], "VOL_NAME": name, "VOL_UUID": "u", "EXTP_ACCESS": "userspace"}
    nothing = subprocess.DEVNULL
    process = subprocess.Popen([SCRIPTS / action], env=environment | variables, stdout=nothing, stderr=nothing)
    time.sleep(seconds)
    process.kill()
    process.wait()

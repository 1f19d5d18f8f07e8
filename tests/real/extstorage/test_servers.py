# SPDX-License-Identifier: BSD-2-Clause
"""What the administrator does with servers and with what they left: list, restart, count, check, collect."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from tests.real.extstorage.provider import (
    COMMAND,
    RUN,
    STORE,
    Client,
    command,
    do,
    eventually,
    new_name,
    qemu_io,
    server_pid,
    store_beside,
)

MIB = 1 << 20


def said(*arguments: str) -> str:
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def server(volume: str) -> dict[str, object]:
    return next(dict(one) for one in json.loads(said("server", "list", "--json")) if one["name"] == volume)


def test_a_restarted_server_is_another_process_and_the_same_writer(volume: str) -> None:
    qemu_io(volume, "write -P 1 0 1M")
    before = server(volume)
    assert (before["mode"], before["writer"], before["pid"]) == ("exclusive", True, server_pid(volume))
    assert "served by process" in said("server", "restart", volume)
    after = server(volume)
    assert after["pid"] not in (0, before["pid"])
    assert (after["mode"], after["writer"]) == ("exclusive", True)
    qemu_io(volume, "read -P 1 0 1M", "write -P 2 1M 1M")
    assert "served by process" in said("server", "restart", "--all")
    qemu_io(volume, "read -P 2 1M 1M")


def test_a_client_in_the_middle_of_its_work_goes_on(volume: str) -> None:
    client = Client(volume, "write -P 1 0 1M")
    said("server", "restart", volume)
    client.finish("write -P 2 1M 1M", "read -P 1 0 1M", "read -P 2 1M 1M", "flush")


def test_a_block_device_goes_on(volume: str) -> None:
    device = do("attach", volume, EXTP_ACCESS="kernelspace").splitlines()[0]
    assert device.startswith("/dev/")
    for number, restart in enumerate((True, False)):
        write = ["dd", f"of={device}", "bs=1M", "count=1", f"seek={number}", "oflag=direct", "if=/dev/zero"]
        subprocess.run(write, check=True, capture_output=True, timeout=50)
        if restart:
            said("server", "restart", volume)
    counted = server(volume)["requests"]
    assert isinstance(counted, dict)
    assert counted["writes"] + counted["discards"] > 0
    assert counted["errors"] == 0


def test_requests_are_counted(volume: str) -> None:
    qemu_io(volume, "write -P 1 0 1M", "read 0 64k", "discard 0 64k", "flush")
    counted = server(volume)["requests"]
    assert isinstance(counted, dict)
    assert counted["written_bytes"] == MIB
    assert counted["read_bytes"] >= 65536
    assert counted["discards"] >= 1
    assert counted["flushes"] >= 1
    assert counted["errors"] == 0


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A store on the machine's own file system: an overlay, as the node's root is, lets no file's writing begin."""
    with store_beside("disk", Path("/srv/shared/disk")) as folder:
        yield folder


def waits_for_a_flush(path: Path) -> bool:
    """Whether the kernel has yet to choose where on the disk some of a file will be: it does so when it writes."""
    return "delalloc" in subprocess.run(["filefrag", "-v", path], capture_output=True, text=True, check=True).stdout


def test_what_is_written_is_soon_on_its_way_to_the_disk(on_disk: Path) -> None:
    """By itself the kernel would begin after half a minute, and a snapshot then wait for all of it."""
    data = bytes(range(256)) * (MIB // 256)
    name = new_name()
    do("create", name, VOL_SIZE="64", EXTP_STORE="disk")
    do("attach", name)
    do("open", name, VOL_OPEN_EXCLUSIVE="True")
    client = nbd.NBD()
    client.connect_unix(str(RUN / name / "nbd.sock"))
    client.pwrite(data, 0)
    [path] = on_disk.glob("data/*/*.data")
    eventually(lambda: not waits_for_a_flush(path), 10)
    client.shutdown()
    do("detach", name)
    do("remove", name)
    path = on_disk / "other"
    path.write_bytes(data)
    assert waits_for_a_flush(path), "this file system does not tell"


def test_what_has_no_server_is_said_and_not_restarted(volume: str) -> None:
    done = command("server", "restart", "no-such-volume")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 2, done.stderr
    assert command("server", "restart").returncode == 2


def test_what_a_dead_server_acknowledged_is_brought_into_the_store(volume: str) -> None:
    """Its directory is as a server leaves it that is killed where nobody starts it again."""
    qemu_io(volume, "write -P 7 0 1M")
    kept = RUN.parent / "kept"
    shutil.copytree(RUN / volume, kept, ignore=shutil.ignore_patterns("*.sock"))
    if os.path.exists("/run/systemd/system"):
        subprocess.run(["systemctl", "kill", "--signal=KILL", f"snf-archipelago@{volume}.service"], check=True)
        subprocess.run(["systemctl", "stop", f"snf-archipelago@{volume}.service"], check=True)
    else:
        os.kill(server_pid(volume), signal.SIGKILL)
        eventually(lambda: server_pid(volume) == 0)
    found = command("fsck", volume, "--json")
    shutil.rmtree(kept)
    (finding,) = json.loads(found.stdout)
    assert finding["name"] == volume
    assert "not yet in the store" in finding["text"]
    assert found.returncode == 1
    assert "[brought into the store]" in said("fsck", "--repair", volume)
    do("attach", volume)
    qemu_io(volume, "read -P 7 0 1M")
    assert json.loads(said("fsck", volume, "--json")) == []


def test_nothing_is_left_after_a_collection(volume: str) -> None:
    said("gc")
    before = set((STORE / "data").iterdir())
    qemu_io(volume, "write -P 1 0 1M")
    said("snapshot", "create", volume, "golden")
    clone = new_name()
    do("create", clone, VOL_SIZE="64", EXTP_ORIGIN="golden")
    said("snapshot", "remove", "golden")
    said("gc")
    do("attach", clone)
    qemu_io(clone, "read -P 1 0 1M")
    do("remove", clone)
    report = json.loads(said("gc", "--dry-run", "--json"))
    assert report[0]["layers"] == 0, "the volume itself still has the layer"
    do("remove", volume)
    said("gc")
    assert set((STORE / "data").iterdir()) <= before


def test_a_collection_that_is_killed_is_followed_by_another(volume: str) -> None:
    chance = random.Random(20261121)
    for number in range(1, 4):
        qemu_io(volume, f"write -P {number} 0 4M", f"write -P {number} 8M 4k", "flush")
        said("snapshot", "create", volume, f"killed{number}")
        qemu_io(volume, f"write -P {number + 100} 0 4M", "flush")
        said("snapshot", "create", volume, f"killed{number}.later")
        said("snapshot", "remove", f"killed{number}")
        collecting = subprocess.Popen([COMMAND, "gc"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.random() * 0.4)
        collecting.kill()
        collecting.wait()
        qemu_io(volume, f"read -P {number + 100} 0 4M", f"read -P {number} 8M 4k")
        said("snapshot", "remove", f"killed{number}.later")
    said("gc")
    (report,) = json.loads(said("gc", "--json"))
    assert (report["layers"], report["shrunk"], report["freed"]) == (0, 0, 0)
    assert json.loads(said("fsck", volume, "--json")) == []
    qemu_io(volume, "read -P 103 0 4M", "read -P 3 8M 4k")

# SPDX-License-Identifier: BSD-2-Clause
"""Making an image of a machine's disk, with the real helper VM: what is its alone is gone, by name and by byte.

Read back with debugfs and by looking at every byte of the disk.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.real.snf_image import helper_vm as vm
from tests.real.snf_image import os_definition as scripts

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("helper_vm")]

MIB = 1 << 20
SECRET = "the-secret-of-this-machine"
PRIVATE = {
    "etc/ssh/ssh_host_ed25519_key": 0o600,
    "root/.ssh/id_ed25519": 0o600,
    "root/.bash_history": 0o600,
    "var/lib/dhcp/dhclient.leases": 0o644,
    "var/lib/cloud/seed/nocloud-net/user-data": 0o600,
    "var/lib/systemd/random-seed": 0o600,
    "var/log/auth.log.1": 0o640,
}
KEPT = "etc/application.conf"
SWAP_AT = 100 * MIB


@pytest.fixture
def disk(folder: Path) -> Path:
    """A machine that has lived: each private file is several blocks of its secret."""
    secret = f"{SECRET}\n" * 1000
    files = {name: (secret, mode) for name, mode in PRIVATE.items()}
    swap = f"{SECRET}\n" * 1000
    shadow = f"root:$6$x${SECRET}:19000:0:99999:7:::\n"
    tree = vm.make_tree(folder / "tree", {**files, KEPT: ("kept\n", 0o644), "etc/shadow": (shadow, 0o640)})
    disk = vm.make_disk(folder / "disk", tree, size=96 * MIB, disk=128 * MIB)
    subprocess.run(["sfdisk", "-q", "--append", disk], input=f"start={SWAP_AT // 512}, type=82\n".encode(), check=True)
    area = folder / "swap"
    with area.open("wb") as stream:
        stream.truncate(16 * MIB)
    subprocess.run(["mkswap", area], check=True, capture_output=True)
    with disk.open("r+b") as stream:
        stream.seek(SWAP_AT)
        stream.write(area.read_bytes()[:4096] + swap.encode())
    return disk


def swap_header(disk: Path) -> bytes:
    with disk.open("rb") as stream:
        stream.seek(SWAP_AT)
        return stream.read(4096)


def generalize(disk: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [scripts.TREE / "snf-image", "generalize", "--json", *options, disk]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def is_in(disk: Path, text: str) -> bool:
    return subprocess.run(["grep", "-qaF", text, disk]).returncode == 0


def test_nothing_of_the_machine_is_left(disk: Path) -> None:
    assert is_in(disk, SECRET)
    header = swap_header(disk)
    done = generalize(disk)
    assert done.returncode == 0, done.stderr
    assert "ForgetHostKeys" in done.stderr
    assert vm.debugfs(disk, "fsck")
    for name in PRIVATE:
        assert vm.read_file(disk, name) == "", name
    assert vm.read_file(disk, "etc/machine-id") == ""
    assert vm.read_file(disk, "etc/hostname") == "localhost\n"
    assert vm.read_file(disk, "etc/shadow").startswith("root:!:19000:")
    assert vm.read_file(disk, KEPT) == "kept\n"
    assert not is_in(disk, SECRET), "what was removed can still be read from the disk"
    assert swap_header(disk) == header
    assert header.endswith(b"SWAPSPACE2")
    found = json.loads(done.stdout)
    assert (found["host_keys_removed"], found["swap_partitions_cleared"]) == ("3", "1")
    assert scripts.leftovers() == []


def test_logins_may_stay(disk: Path) -> None:
    done = generalize(disk, "--keep-logins", "--root-partition", "1")
    assert done.returncode == 0, done.stderr
    assert SECRET in vm.read_file(disk, "etc/shadow")
    assert SECRET in vm.read_file(disk, "root/.ssh/id_ed25519")
    assert vm.read_file(disk, "etc/ssh/ssh_host_ed25519_key") == ""


def test_a_disk_without_a_system_is_refused(folder: Path) -> None:
    empty = folder / "empty"
    with empty.open("wb") as stream:
        stream.truncate(16 * MIB)
    done = generalize(empty)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()[-1]) > 20
    assert generalize(folder / "nothing").returncode == 1

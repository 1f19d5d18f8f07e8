# SPDX-License-Identifier: BSD-2-Clause
"""`archipelago image publish`, with the real helper VM: what is published, what stays, and what no death leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.extstorage import provider
from tests.real.extstorage.provider import RUN, command, do, new_name, qemu_io
from tests.real.snf_image import helper_vm as vm
from tests.real.snf_image import os_definition as scripts

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("helper_vm")]

MIB = 1 << 20
SECRET = "the-secret-of-this-machine"
GOLDEN = "test-golden"
BASE = "test-publish-base"


@pytest.fixture(scope="module", autouse=True)
def _image(module_folder: Path) -> Iterator[None]:
    files = {
        "etc/ssh/ssh_host_ed25519_key": (f"{SECRET}\n" * 1000, 0o600),
        "etc/shadow": (f"root:$6$x${SECRET}:19000:0:99999:7:::\n", 0o640),
        "etc/application.conf": ("kept\n", 0o644),
    }
    tree = vm.make_tree(module_folder / "tree", files)
    disk = vm.make_disk(module_folder / "image", tree, size=64 * MIB, disk=64 * MIB)
    done = command("image", "import", BASE, disk, "-p", "OSFAMILY=linux", "-p", "USERS=root", "-p", "ROOT_PARTITION=1")
    assert done.returncode == 0, done.stderr
    yield
    command("image", "remove", BASE)


@pytest.fixture
def volume() -> Iterator[str]:
    """The disk of the instance `machine`, open for writing."""
    name = new_name()
    do("create", name, VOL_SIZE="64", EXTP_ORIGIN=BASE)
    do("attach", name)
    do("open", name, VOL_OPEN_EXCLUSIVE="True")
    do("setinfo", name, VOL_METADATA="originstname+machine")
    yield name
    do("detach", name)
    do("remove", name)
    command("image", "remove", GOLDEN)


def everything() -> set[str]:
    """Volumes, snapshots and images of the store, and what is served."""
    found = {path.name for path in RUN.iterdir()} if RUN.is_dir() else set()
    for kind in ("volume", "snapshot", "image"):
        found |= {row["name"] for row in json.loads(command(kind, "list", "--json").stdout)}
    return found


def copy_of(name: str, folder: Path) -> Path:
    """The bytes of a volume that is attached."""
    copy = folder / "copy"
    subprocess.run(["nbdcopy", provider.uri(name), copy], check=True)
    return copy


def has_secret(disk: Path) -> bool:
    return subprocess.run(["grep", "-qaF", SECRET, disk]).returncode == 0


def test_a_machine_in_use_becomes_an_image_without_its_secrets(volume: str, folder: Path) -> None:
    before = everything()
    done = command("image", "publish", "machine", GOLDEN, "-p", "users=root admin", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["source"] == volume
    assert made["properties"] == {"OSFAMILY": "linux", "USERS": "root admin", "ROOT_PARTITION": "1"}
    assert len(made["hash"]) == 64
    assert made["generalized"]["host_keys_removed"] == "3"
    assert done.stderr == ""  # steps are told to who watches
    assert everything() == before | {GOLDEN}
    assert scripts.leftovers() == []
    shown = json.loads(command("image", "show", GOLDEN, "--json").stdout)
    assert (shown["properties"], shown["origin"]) == (made["properties"], volume)
    # The machine itself goes on as it was, and the image does not follow it.
    qemu_io(volume, "write -P 7 0 512")
    assert has_secret(copy_of(volume, folder))
    clone = new_name()
    do("create", clone, VOL_SIZE="64", EXTP_ORIGIN=GOLDEN)
    do("attach", clone)
    try:
        copy = copy_of(clone, folder)
        assert not has_secret(copy)
        assert vm.debugfs(copy, "fsck")
        assert vm.read_file(copy, "etc/application.conf") == "kept\n"
        assert vm.read_file(copy, "etc/machine-id") == ""
    finally:
        do("detach", clone)
        do("remove", clone)


def test_as_is(volume: str, folder: Path) -> None:
    done = command("image", "publish", f"{volume}", GOLDEN, "--as-is")
    assert done.returncode == 0, done.stderr
    do("attach", GOLDEN)
    assert has_secret(copy_of(GOLDEN, folder))
    do("detach", GOLDEN)


def test_kill_9_and_again(volume: str) -> None:
    before = everything()
    line = [provider.COMMAND, "image", "publish", "machine:0", GOLDEN]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    provider.eventually(lambda: any("qemu-system" in line for line in scripts.processes()), 60)
    refused = command("image", "publish", "machine", GOLDEN)
    assert (refused.returncode, "being published on this node right now" in refused.stderr) == (1, True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    done = command("image", "publish", "machine", GOLDEN)
    assert done.returncode == 0, done.stderr
    assert everything() == before | {GOLDEN}
    provider.eventually(lambda: not scripts.processes(), 30)


def test_a_disk_that_cannot_be_generalized_is_not_published(volume: str) -> None:
    qemu_io(volume, "write -P 0 0 64M")
    before = everything()
    done = command("image", "publish", "machine", GOLDEN)
    assert done.returncode == 1
    assert "can't be generalized" in done.stderr.splitlines()[-1]
    assert "--as-is" in done.stderr.splitlines()[-1]
    assert everything() == before


def test_sources_that_are_none(volume: str) -> None:
    second = new_name()
    do("create", second, VOL_SIZE="4")
    do("setinfo", second, VOL_METADATA="originstname+machine")
    before = everything()
    try:
        for source, name, reason in (
            ("machine", GOLDEN, "2 disks that this may mean"),
            ("machine:7", GOLDEN, "neither a volume, snapshot or image nor an instance"),
            ("nothing", GOLDEN, "neither a volume, snapshot or image nor an instance"),
            ("../x", GOLDEN, "the source"),
            (volume, BASE, "already in the store"),
            (volume, "-x", "image name"),
            (volume, "x" * 70, "1 to 53 characters"),
        ):
            done = command("image", "publish", "--", source, name)
            assert done.returncode == 2, done
            assert reason in done.stderr, done.stderr
            assert len(done.stderr.strip().splitlines()) == 1
        assert everything() == before
    finally:
        do("remove", second)


def test_interrupted_by_a_signal(volume: str) -> None:
    before = everything()
    process = subprocess.Popen([provider.COMMAND, "image", "publish", "machine", GOLDEN], stderr=subprocess.DEVNULL)
    provider.eventually(lambda: any("qemu-system" in line for line in scripts.processes()), 60)
    time.sleep(0.2)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert everything() == before

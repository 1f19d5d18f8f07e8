# SPDX-License-Identifier: BSD-2-Clause
"""The commands of the cage and of the machine in it, as tables of what must be there and what must not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ganeti_plugin.settings import Accel
from snf_image import machine, qcow2, sandbox
from snf_image.console import SHOWN_LIMIT, TAKEN_LIMIT, Console
from snf_image.conversation import HelperError
from snf_image.machine import Machine
from snf_image.sandbox import Limits, Sandbox
from snf_image.targets import Kind, Place

DISKS = (
    Place(index=0, kind=Kind.DEVICE, path="/dev/loop3"),
    Place(index=1, kind=Kind.NBD, path="/run/v/nbd.sock", export="vol"),
    Place(index=2, kind=Kind.FILE, path="/srv/disk"),
)


def qemu(disks: tuple[Place, ...] = DISKS, accel: Accel = Accel.TCG) -> list[str]:
    return machine.command(
        Machine(files=Path("/sandbox/files"), arguments="quiet", memory=512, accel=accel, disks=disks)
    )


def test_disks_are_descriptors_and_raw() -> None:
    """R2, R3: no name of a disk reaches QEMU, and none is probed."""
    command = qemu()
    assert not any(disk.path in word for disk in DISKS for word in command)
    nodes = {node["node-name"]: node for node in map(json.loads, after(command, "-blockdev"))}
    assert [nodes[f"disk{number}"]["driver"] for number in range(3)] == ["raw"] * 3
    assert nodes["file0"]["filename"] == "/dev/fdset/2"
    assert nodes["file1"]["server"] == {"type": "fd", "str": "%fd3%"}
    assert nodes["file1"]["export"] == "vol"
    assert nodes["file2"]["driver"] == "file"
    assert sum("serial=snf-disk-" in word for word in command) == 3


def after(command: list[str], option: str) -> list[str]:
    return [command[number + 1] for number, word in enumerate(command) if word == option]


def test_the_machine_has_nothing_else() -> None:
    """V01."""
    command = qemu()
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(command)
    assert "spawn=deny" in after(command, "-sandbox")[0]
    devices = {word.split(",")[0] for word in after(command, "-device")}
    assert devices == {"virtio-serial-pci", "virtserialport", "virtio-blk-pci"}
    assert not {"-netdev", "-nic", "-net", "-monitor", "-mon", "-qmp", "-fsdev", "-virtfs", "-usb", "-vnc"} & set(
        command
    )


def test_the_reader_of_qcow2_follows_no_name() -> None:
    nodes = [json.loads(text) for text in after(qcow2.command(), "-blockdev")]
    assert nodes[0]["filename"] == "/dev/fdset/1"
    assert (nodes[1]["driver"], nodes[1]["backing"], nodes[1]["read-only"]) == ("qcow2", None, True)


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setattr(sandbox, "is_systemd", lambda: True)
    monkeypatch.setattr(sandbox, "ROOT", tmp_path / "root")
    return sandbox.command(Sandbox(name="helper", limits=Limits(memory=900, seconds=120), files=Path("/helper")))


def test_the_unit(unit: list[str]) -> None:
    properties = dict(word.removeprefix("--property=").split("=", 1) for word in unit if word.startswith("--property="))
    expected = {
        "DynamicUser": "yes",
        "PrivateNetwork": "yes",
        "PrivateDevices": "yes",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "MemoryMax": "900M",
        "MemorySwapMax": "0",
        "LimitCORE": "0",
        "TasksMax": "64",
        "RestrictAddressFamilies": "AF_UNIX",
    }
    assert {name: properties.get(name) for name in expected} == expected
    assert int(properties["RuntimeMaxSec"]) > 120
    assert "TemporaryFileSystem" not in properties, "systemd ignores it for /"
    assert Path(properties["RootDirectory"], "lib64").readlink() == Path("usr/lib64")


def test_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "is_systemd", lambda: False)
    command = sandbox.command(Sandbox(name="helper", limits=Limits(memory=900, seconds=120), files=Path("/helper")))
    assert {"--net", "--core=0", "--no-new-privs", "--bounding-set=-all", "--reuid=nobody"} <= set(command)
    assert not [word for word in command if "pdeathsig" in word], "the launcher would die before it could kill QEMU"


def test_console_is_escaped_and_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    """V03."""
    console = Console()
    console.feed(b"\x1b[2Jroot@host\r\nhalf")
    console.finish()
    assert capsys.readouterr().err == "helper: \\x1b[2Jroot@host\nhelper: half\n"
    for _ in range(100):
        console.feed(b"x" * 4000 + b"\n")
        console.feed(b"y\n" * 4000)
    assert len(capsys.readouterr().err) < 12 * SHOWN_LIMIT
    for _ in range((TAKEN_LIMIT - (4 << 20)) // 65536):
        console.feed(b"z" * 65536)
    with pytest.raises(HelperError, match="console"):
        console.feed(bytes(4 << 20))

# SPDX-License-Identifier: BSD-2-Clause
"""The QEMU command of the helper VM. Pure: descriptions in, arguments out.

The machine has the instance's disks, one channel, one console, and nothing else: no network, no monitor, no firmware
beyond what starts a kernel, no shared folder (threats R3, V01). Every disk is opened as raw, whatever a guest wrote to
it (R2, H16). `%fdN%` stands for a descriptor that the launcher inserts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ganeti_plugin.settings import Accel
from snf_image.protocol import DISK_SERIAL, PORT
from snf_image.targets import Kind, Place

QEMU = Path("/usr/bin/qemu-system-x86_64")

#: Code of QEMU's own that must not run: no other program, no privileges, no change of scheduling (seccomp).
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

#: MiB that the emulator may fill with translated code.
CODE_CACHE = 64


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the VM is made of. `files` is the folder of kernel and initrd as QEMU sees it; `memory` is in MiB."""

    files: Path
    arguments: str
    memory: int
    accel: Accel
    disks: tuple[Place, ...] = ()
    is_restored: bool = False
    """Whether it starts from a saved state (warm.py), which is the last descriptor."""


def command(machine: Machine) -> list[str]:
    """QEMU's command. Descriptors: 0 is the channel, 1 the console, then one for each disk, then a saved state's."""
    accel = "kvm" if machine.accel is Accel.KVM else f"tcg,thread=multi,tb-size={CODE_CACHE}"
    cpu = "host" if machine.accel is Accel.KVM else "max"
    return [
        str(QEMU),
        *("-name", "snf-image-helper", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-sandbox", SANDBOX),
        *("-machine", "pc,usb=off,vmport=off,graphics=off", "-accel", accel, "-cpu", cpu, "-smp", "1"),
        *("-m", str(machine.memory)),
        *("-kernel", str(machine.files / "kernel"), "-initrd", str(machine.files / "initrd")),
        *("-append", machine.arguments),
        *("-chardev", "socket,id=console,fd=%fd1%", "-serial", "chardev:console"),
        *("-device", "virtio-serial-pci,max_ports=2", "-chardev", "socket,id=channel,fd=%fd0%"),
        *("-device", f"virtserialport,chardev=channel,name={PORT}"),
        *_disks(machine.disks),
        *(("-incoming", f"fd:%fd{len(machine.disks) + 2}%") if machine.is_restored else ()),
    ]


def _disks(disks: Sequence[Place]) -> list[str]:
    words: list[str] = []
    for number, disk in enumerate(disks):
        words += _block_device(disk, number + 2)
        words += ["-device", f"virtio-blk-pci,drive=disk{disk.index},serial={DISK_SERIAL}{disk.index}"]
    return words


def _block_device(disk: Place, descriptor: int) -> list[str]:
    """A raw node over the open file or the connected server; never a name, never a guess."""
    words: list[str] = []
    protocol: dict[str, object]
    if disk.kind is Kind.NBD:
        protocol = {"driver": "nbd", "server": {"type": "fd", "str": f"%fd{descriptor}%"}, "export": disk.export}
    else:
        driver = "host_device" if disk.kind is Kind.DEVICE else "file"
        words += ["-add-fd", f"fd=%fd{descriptor}%,set={descriptor}"]
        protocol = {"driver": driver, "filename": f"/dev/fdset/{descriptor}", "aio": "threads"}
    common = {"discard": "unmap", "read-only": False, "auto-read-only": False}
    cache = {"cache": {"direct": False, "no-flush": False}}
    lower = {"node-name": f"file{disk.index}", **protocol, **common, **cache}
    upper = {"node-name": f"disk{disk.index}", "driver": "raw", "file": f"file{disk.index}", **common, **cache}
    return [*words, "-blockdev", json.dumps(lower), "-blockdev", json.dumps(upper)]

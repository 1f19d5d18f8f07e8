# SPDX-License-Identifier: BSD-2-Clause
"""The demonstration's guests: what Ganeti says of them, and questions to them over ssh and the serial console."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from ganeti_plugin.errors import StateError
from ganeti_plugin.run import run
from tests.place import done

PREFIX6 = "2001:db8:1::"

#: What a guest is asked about itself, one answer a line.
QUESTIONS = (
    "hostname; cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; "
    "df -B1 --output=size / | tail -n 1; cat /sys/block/vda/size"
)
SECTOR = 512

#: A file system's size is below its disk's by partition table, journal and inode tables.
OVERHEAD = 0.10


@dataclass(frozen=True, kw_only=True)
class Guest:
    name: str
    ip: str
    mac: str
    volume: str
    """Archipelago's name of disk 0 (Ganeti's VOL_NAME)."""

    @property
    def ip6(self) -> str:
        """The address that follows from the MAC (RFC 4291, appendix A: EUI-64)."""
        octets = bytes.fromhex(self.mac.replace(":", ""))
        interface = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
        return str(ipaddress.IPv6Address(ipaddress.IPv6Address(PREFIX6).packed[:8] + interface))


@dataclass(frozen=True, kw_only=True)
class Answers:
    host_name: str
    machine_id: str
    host_key: str
    root_bytes: int
    disk_bytes: int

    @classmethod
    def parse(cls, text: str) -> Answers:
        lines = text.split("\n")
        if len(lines) != 5:
            raise StateError(message=f"the guest's answers are not five lines: {text!r}")
        name, machine, key, size, sectors = (line.strip() for line in lines)
        disk = int(sectors) * SECTOR
        return cls(host_name=name, machine_id=machine, host_key=key, root_bytes=int(size), disk_bytes=disk)

    def fills_its_disk(self) -> bool:
        return self.root_bytes > self.disk_bytes * (1 - OVERHEAD)


def look_up(name: str) -> Guest:
    """Ask Ganeti for an instance's first NIC and disk."""
    fields = done("gnt-instance", "list", "--no-headers", "--separator=|", "-o", "nic.ips,nic.macs", name)
    ip, mac = fields.split("|")
    volume = re.search(r"[0-9a-f-]{36}\.ext\.disk0", done("gnt-instance", "info", name))
    if volume is None:
        raise StateError(message=f"'gnt-instance info {name}' names no ext volume")
    return Guest(name=name, ip=ip, mac=mac, volume=volume.group())


@dataclass(frozen=True, kw_only=True)
class Keys:
    """How the guests are entered; both files are the demonstration's own and die with it."""

    private: Path
    public: str
    password: str

    @classmethod
    def make(cls, directory: Path, password: str) -> Keys:
        private = directory / "id_ed25519"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo", "-f", private])
        return cls(private=private, public=private.with_suffix(".pub").read_text().strip(), password=password)

    def ssh(self, guest: Guest, command: str) -> str:
        """Run a command in a guest, by its key alone, from outside."""
        return done(*self.ssh_command(guest.ip), command, place="outside", timeout=90)

    def ssh_command(self, address: str) -> list[str]:
        return [
            *("ssh", "-i", str(self.private), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
            *("-o", "ConnectTimeout=10", f"root@{address}"),
        ]

    def console(self, guest: Guest, command: str, *, seconds: float = 300) -> str:
        """Run a command in a guest over its serial console, entered by the password."""
        socket = f"/var/run/ganeti/kvm-hypervisor/ctrl/{guest.name}.serial"
        arguments = ["/usr/bin/python3", "/src/tests/demo/console.py", socket, str(seconds), command]
        return done(*arguments, stdin=f"{self.password}\n", timeout=seconds + 30)

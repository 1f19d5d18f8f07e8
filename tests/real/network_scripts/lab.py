# SPDX-License-Identifier: BSD-2-Clause
"""A node, two guests and an outside router, each a network namespace of its own; a veth pair stands for each tap.

Nothing of the machine's own network is touched: the namespaces live as long as one sleeping process each.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[3]
GATEWAY_MAC = "cc:47:52:4e:45:54"
GATEWAY, GATEWAY6 = "198.51.100.1", "2001:db8:1::1"
NODE_ADDRESS = "192.0.2.5"
LINK = "100"

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace, held by a process."""

    def __init__(self) -> None:
        self.holder = subprocess.Popen(["unshare", "-n", "sleep", "900"])
        mine = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 5
        while os.readlink(f"/proc/{self.holder.pid}/ns/net") == mine:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.run("ip", "link", "set", "lo", "up")

    def run(
        self, *command: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["nsenter", "-t", str(self.holder.pid), "-n", *command],
            capture_output=True,
            text=True,
            timeout=40,
            env={"PATH": os.environ["PATH"], **(env or {})},
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def ip(self, *lines: str) -> None:
        for line in lines:
            self.run("ip", *line.split())

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What this thread opens meanwhile belongs to the namespace."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.holder.pid}/ns/net", os.O_RDONLY)
        try:
            assert _libc.setns(there, _CLONE_NEWNET) == 0
            yield
        finally:
            assert _libc.setns(own, _CLONE_NEWNET) == 0
            os.close(own)
            os.close(there)

    def endpoint(self, family: int, kind: int) -> socket.socket:
        with self.inside():
            return socket.socket(family, kind)

    def packets(self, device: str) -> socket.socket:
        """A raw socket on a device, to send frames and to see those that come in."""
        with self.inside():
            channel = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            channel.bind((device, 3))
            return channel

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()


class Guest:
    """A guest: its namespace, and what Ganeti says about its NIC."""

    def __init__(self, lab: Lab, number: int, *, ipv4: bool = True, ipv6: bool = True, **variables: str) -> None:
        self.lab, self.number = lab, number
        self.tap, self.mac = f"tap{number}", f"aa:00:00:00:00:{number + 1:02x}"
        self.ip = f"198.51.100.{10 + number}"
        self.link_local = f"fe80::a800:ff:fe00:{number + 1:x}"
        self.ip6 = f"2001:db8:1:0:a800:ff:fe00:{number + 1:x}"
        self.space = Namespace()
        self.plug()
        self.environment = {
            "INSTANCE": f"guest{number}.example.com", "MAC": self.mac, "MODE": "routed", "INTERFACE": self.tap,
            "INTERFACE_INDEX": "0", "INTERFACE_UUID": f"00000000-0000-4000-8000-{number:012d}", "TAGS": "",
            "LINK": LINK, "NETWORK_NAME": "public", "NETWORK_SUBNET": "198.51.100.0/24", "NETWORK_GATEWAY": GATEWAY,
        }  # fmt: skip
        self.environment |= {"IP": self.ip} if ipv4 else {}
        self.environment |= {"NETWORK_SUBNET6": "2001:db8:1::/64", "NETWORK_GATEWAY6": GATEWAY6} if ipv6 else {}
        self.environment |= variables

    def plug(self) -> None:
        """Make the tap anew, as Ganeti does, with a guest behind it."""
        holder = self.space.holder.pid
        self.lab.node.ip(f"link add {self.tap} type veth peer name eth0 netns {holder}")
        with self.space.inside():
            Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
        self.space.ip(
            f"link set eth0 address {self.mac}", "link set eth0 up", f"addr add {self.ip}/24 dev eth0",
            f"route add default via {GATEWAY}", f"-6 addr add {self.ip6}/64 dev eth0 nodad",
            f"-6 route add default via {GATEWAY6}",
        )  # fmt: skip

    def unplug(self) -> None:
        self.lab.node.ip(f"link del {self.tap}")

    def up(self, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in {**self.environment, **variables}.items() if v != "ABSENT"}
        return self.lab.node.run(str(TREE / "ganeti-ifup"), check=check, env=environment)


class Lab:
    """The node with its uplink, and the router that plays the outside."""

    def __init__(self) -> None:
        self.node, self.router = Namespace(), Namespace()
        self.guests: list[Guest] = []
        self.node.ip(f"link add eth1 type veth peer name eth0 netns {self.router.holder.pid}")
        self.node.ip("link add mgmt type bridge", "link set mgmt up", f"addr add {NODE_ADDRESS}/24 dev mgmt")
        self.node.ip("link set eth1 up", f"route add 198.51.100.0/24 dev eth1 table {LINK}")
        self.node.ip(f"route add default via {GATEWAY} dev eth1 onlink table {LINK}")
        self.router.ip(
            "link set eth0 up", f"addr add {GATEWAY}/24 dev eth0", f"-6 addr add {GATEWAY6}/64 dev eth0 nodad"
        )
        self.router.ip("addr add 203.0.113.9/32 dev lo", "-6 addr add 2001:db8:9::9/128 dev lo")
        self.node.run(str(TREE / "snf-network"), "setup")

    def guest(self, number: int, **options: Any) -> Guest:
        made = Guest(self, number, **options)
        self.guests.append(made)
        return made

    def close(self) -> None:
        for space in (self.node, self.router, *(guest.space for guest in self.guests)):
            space.close()

    def drops(self, reason: str, tap: str, family: str = "netdev") -> int:
        """The counter, as nft itself lists it."""
        listed = self.node.run("nft", "-j", "list", "set", family, "snf_network", f"drops_{reason}").stdout
        for item in json.loads(listed)["nftables"]:
            for element in item.get("set", {}).get("elem", ()):
                if element["elem"]["val"] == tap:
                    return int(element["elem"]["counter"]["packets"])
        return 0

    def all_drops(self, tap: str) -> dict[str, int]:
        """Every counter of an interface that is above zero, by "family reason"."""
        listed = json.loads(self.node.run("nft", "-j", "list", "sets").stdout)
        found = {}
        for item in listed["nftables"]:
            body = item.get("set", {})
            if body.get("name", "").startswith("drops_"):
                for element in body.get("elem", ()):
                    if element["elem"]["val"] == tap:
                        name = f"{body['family']} {body['name'].removeprefix('drops_')}"
                        found[name] = int(element["elem"]["counter"]["packets"])
        return found

    def seen(self, channel: socket.socket, wanted: bytes, seconds: float) -> bool:
        """Whether a frame with these bytes comes in within the time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([channel], [], [], left)[0]:
                return False
            frame, origin = channel.recvfrom(65536)
            if origin[2] != socket.PACKET_OUTGOING and wanted in frame:  # type: ignore[attr-defined,unused-ignore]
                return True
        return False

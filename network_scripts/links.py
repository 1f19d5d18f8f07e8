# SPDX-License-Identifier: BSD-2-Clause
"""The kernel's links, addresses, routes, policy rules and neighbours: the one place that touches them.

By `ip -batch`, at 3 ms a call, and by the files of /proc/sys: importing pyroute2 alone takes 350 ms, more than twice
what a whole NIC may cost. What is ours carries the protocol number PROTOCOL, so that it can be told from what the
administrator set up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

from ganeti_plugin.errors import StateError
from ganeti_plugin.run import run

#: rtm_protocol of what we make; a number that no routing daemon uses (/etc/iproute2/rt_protos).
PROTOCOL = 83

_SYSCTL = Path("/proc/sys/net")
_TABLE_NAMES = (
    Path("/etc/iproute2/rt_tables"),
    Path("/usr/share/iproute2/rt_tables"),
    Path("/usr/lib/iproute2/rt_tables"),
)

_ETH_ARP = 0x0806
_ETH_IPV6 = 0x86DD
#: How ip(8) says that something is there already.
_EXISTS = "RTNETLINK answers: File exists"

#: struct ifreq of ioctl(2), see netdevice(7).
_SIOCGIFHWADDR = 0x8927
_IFREQ_SIZE = 40

_BROADCAST = b"\xff" * 6
_ALL_NODES = bytes.fromhex("333300000001")


class NoInterfaceError(StateError):
    template = "there is no interface {name}"


class RoutingError(StateError):
    template = "the kernel refused routes or neighbours: {reason}"


class Proxy(NamedTuple):
    """A neighbour that an interface answers for."""

    address: IPv4Address | IPv6Address
    device: str


def index(name: str) -> int:
    """The interface's index: two interfaces of the same name, one after the other, differ in it."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise NoInterfaceError(name=name) from None


def index_or_none(name: str) -> int | None:
    try:
        return index(name)
    except NoInterfaceError:
        return None


def mac(name: str) -> str:
    """The hardware address; asked of the kernel, for a /sys mounted elsewhere shows another namespace's interfaces."""
    request = name.encode().ljust(_IFREQ_SIZE, b"\0")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            answer = fcntl.ioctl(channel, _SIOCGIFHWADDR, request)
    except OSError:
        raise NoInterfaceError(name=name) from None
    return answer[18:24].hex(":")


def set_sysctl(key: str, value: str) -> None:
    """Write net.KEY ("ipv6/conf/tap0/accept_ra"), unless it has that value already."""
    path = _SYSCTL / key
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        raise StateError(message=f"sysctl {path} cannot be set to {value}: {error.strerror}") from None


def sysctl(key: str) -> str | None:
    try:
        return (_SYSCTL / key).read_text().strip()
    except OSError:
        return None


def has_ipv6() -> bool:
    return (_SYSCTL / "ipv6").is_dir()


def batch(family: int, lines: Iterable[str]) -> None:
    """Run commands of ip(8), whose arguments are all checked or our own, in one process.

    Adding what is there already is no failure; any other failure is raised after the rest was done.
    """
    text = "".join(f"{line}\n" for line in lines)
    if not text:
        return
    done = run(["ip", "-force", f"-{family}", "-batch", "-"], stdin=text.encode(), timeout=20, allowed=(0, 1, 2))
    if done.returncode:
        failures = failures_of(done.stderr.decode("utf-8", "replace"))
        if failures:
            raise RoutingError(reason="; ".join(failures)[:400])


def failures_of(stderr: str) -> list[str]:
    """The reasons that `ip -force -batch` gave, but for "File exists". Each is followed by "Command failed -:LINE"."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith("Command failed") and line != _EXISTS]


def query(*arguments: str) -> list[dict[str, Any]]:
    """What ip(8) lists, empty where there is nothing."""
    done = run(["ip", "-j", *arguments], timeout=20, allowed=(0, 2))
    # For a routing table that does not exist yet, ip prints the bare beginning of a list (iproute2 6.1).
    parsed = [] if done.returncode else json.loads(done.stdout or b"[]")
    return [item for item in parsed if item]


def table_names() -> dict[str, int]:
    """The names of routing tables, as the administrator gave them."""
    names: dict[str, int] = {}
    for path in (*_TABLE_NAMES, *sorted(Path("/etc/iproute2/rt_tables.d").glob("*.conf"))):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                found = re.match(r"\s*([0-9]+)\s+([^\s#]+)", line)
                if found:
                    names[found[2]] = int(found[1])
    return names


def default_device(table: int) -> str | None:
    """The interface of a table's default route, when it has one."""
    for family in ("-4", "-6"):
        for route in query(family, "route", "list", "default", "table", str(table)):
            if route.get("dev") and route.get("type", "unicast") == "unicast":
                return str(route["dev"])
    return None


def proxies() -> list[Proxy]:
    """The IPv6 neighbours that we answer for."""
    found = query("-6", "neigh", "show", "proxy")
    return [
        Proxy(ip_address(item["dst"]), item["dev"]) for item in found if str(item.get("protocol", "")) == str(PROTOCOL)
    ]


def announce(device: str, addresses4: Iterable[IPv4Address], addresses6: Iterable[IPv6Address]) -> None:
    """Say that addresses are behind this interface: gratuitous ARP, unsolicited neighbour advertisements.

    One socket for all, which never receives: closing one costs the kernel's grace period, some ten milliseconds.
    """
    own = _octets(mac(device))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as channel:
        for address in addresses4:
            for operation in (1, 2):
                frame = _BROADCAST + own + _ETH_ARP.to_bytes(2) + gratuitous(own, address, operation)
                channel.sendto(frame, (device, _ETH_ARP))
        for address6 in addresses6:
            frame = _ALL_NODES + own + _ETH_IPV6.to_bytes(2) + advertisement(own, address6)
            channel.sendto(frame, (device, _ETH_IPV6))


def gratuitous(own: bytes, address: IPv4Address, operation: int) -> bytes:
    """ARP about oneself, as request (1) or as reply (2): some listen to the one, some to the other."""
    target = bytes(6) if operation == 1 else _BROADCAST
    head = bytes.fromhex("0001 0800 06 04") + operation.to_bytes(2)
    return head + own + address.packed + target + address.packed


def advertisement(own: bytes, address: IPv6Address) -> bytes:
    """An unsolicited neighbour advertisement that overrides, from the link-local address of the interface."""
    interface = bytes((own[0] ^ 2,)) + own[1:3] + b"\xff\xfe" + own[3:]
    source, everyone = b"\xfe\x80" + bytes(6) + interface, IPv6Address("ff02::1").packed
    body = b"\x88\0\0\0" + b"\x20\0\0\0" + address.packed + b"\x02\x01" + own
    check = _checksum(source + everyone + len(body).to_bytes(4) + b"\0\0\0\x3a" + body)
    body = body[:2] + check.to_bytes(2) + body[4:]
    return b"\x60\0\0\0" + len(body).to_bytes(2) + b"\x3a\xff" + source + everyone + body


def _octets(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _checksum(data: bytes) -> int:
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def exists(name: str) -> bool:
    return index_or_none(name) is not None


def guest_addresses() -> set[IPv4Address | IPv6Address]:
    """The IPv6 addresses that routes of ours lead to by a guest's interface."""
    found = query("-6", "route", "show", "table", "all", "proto", str(PROTOCOL))
    hosts = (item["dst"] for item in found if str(item.get("dev", "")).startswith("tap"))
    return {ip_address(host) for host in hosts if host != "default" and "/" not in host}

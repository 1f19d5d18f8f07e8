# SPDX-License-Identifier: BSD-2-Clause
"""Firewall profiles towards guests, stateful and for both families, with real connections (threats N73, N74)."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Iterator

import pytest

from tests.real.network_scripts.lab import GATEWAY, GATEWAY6, NODE_ADDRESS, Guest, Lab, Namespace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from scapy.all import ICMP, IP, TCP, UDP, Ether, Raw
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment

MARK = b"snf-mark-of-test"
OUTSIDE4 = "203.0.113.9"


@pytest.fixture(scope="module")
def guests(lab: Lab) -> dict[str, Guest]:
    """A guest of each profile; limited by a bare word, protected over an earlier tag of another kind."""
    tags = {
        "none": "",
        "unprotected": "protected synnefo:network:0:unprotected",
        "protected": "synnefo:network:0:limited synnefo:network:0:protected synnefo:network:7:unprotected",
        "limited": "limited",
    }
    made = {}
    for number, (name, text) in enumerate(tags.items()):
        made[name] = lab.guest(number, TAGS=text)
        made[name].up()
    return made


@pytest.fixture(scope="module", autouse=True)
def _listeners(guests: dict[str, Guest]) -> Iterator[None]:
    """Ports 22 and 80 are open in every guest, for both families."""
    opened = []
    for guest in guests.values():
        for port in (22, 80):
            listener = guest.space.endpoint(socket.AF_INET6, socket.SOCK_STREAM)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(("::", port))
            listener.listen()
            opened.append(listener)
    yield
    for listener in opened:
        listener.close()


def connects(space: Namespace, address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with space.endpoint(family, socket.SOCK_STREAM) as client:
        client.settimeout(0.7)
        try:
            client.connect((address, port))
        except (TimeoutError, OSError):
            return False
        return True


def pings(space: Namespace, address: str) -> bool:
    return space.run("ping", "-n", "-c1", "-W1", address, check=False).returncode == 0


@pytest.mark.parametrize("family", ["ip", "ip6"])
@pytest.mark.parametrize(
    ("profile", "port", "accepted"),
    [
        ("none", 22, True), ("none", 80, True), ("unprotected", 22, True), ("unprotected", 80, True),
        ("protected", 22, False), ("protected", 80, False), ("limited", 22, True), ("limited", 80, False),
    ],
)  # fmt: skip
def test_new_connections(
    lab: Lab, guests: dict[str, Guest], family: str, profile: str, port: int, accepted: bool
) -> None:
    guest = guests[profile]
    before = lab.drops("in_profile", guest.tap, "inet")
    assert connects(lab.router, getattr(guest, family), port) is accepted
    assert (lab.drops("in_profile", guest.tap, "inet") > before) is not accepted


@pytest.mark.parametrize("profile", ["none", "protected", "limited"])
def test_ping_both_ways(lab: Lab, guests: dict[str, Guest], profile: str) -> None:
    guest = guests[profile]
    assert pings(lab.router, guest.ip)
    assert pings(lab.router, guest.ip6)
    assert pings(guest.space, GATEWAY)
    assert pings(guest.space, GATEWAY6)


@pytest.mark.parametrize("profile", ["none", "protected", "limited"])
def test_the_guest_opens_connections(lab: Lab, guests: dict[str, Guest], profile: str) -> None:
    with lab.router.endpoint(socket.AF_INET6, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 7777))
        listener.listen()
        assert connects(guests[profile].space, GATEWAY, 7777)
        assert connects(guests[profile].space, GATEWAY6, 7777)


def test_an_answer_by_udp_comes_back(lab: Lab, guests: dict[str, Guest]) -> None:
    guest = guests["protected"]
    with (
        lab.router.endpoint(socket.AF_INET, socket.SOCK_DGRAM) as server,
        guest.space.endpoint(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((GATEWAY, 5353))
        server.settimeout(2)
        client.settimeout(2)
        client.sendto(b"question", (GATEWAY, 5353))
        question, origin = server.recvfrom(100)
        assert question == b"question"
        assert origin[0] == guest.ip
        server.sendto(b"answer", origin)
        assert client.recv(100) == b"answer"


@pytest.mark.parametrize(
    "name", ["udp-53", "udp-67", "tcp-ack", "tcp-20", "fragment", "icmp-error", "udp6-53", "tcp6-ack", "fragment6"]
)
def test_no_way_round_a_profile(lab: Lab, guests: dict[str, Guest], name: str) -> None:
    """N73, N34: what passed the stateless filters of old."""
    guest = guests["protected"]
    four, six = IP(src=GATEWAY, dst=guest.ip), IPv6(src=GATEWAY6, dst=guest.ip6)
    packet = {
        "udp-53": four / UDP(sport=53, dport=4000) / Raw(MARK),
        "udp-67": four / UDP(sport=67, dport=68) / Raw(MARK),
        "tcp-ack": four / TCP(sport=443, dport=80, flags="A", seq=5, ack=9) / Raw(MARK),
        "tcp-20": four / TCP(sport=20, dport=80, flags="S") / Raw(MARK),
        "fragment": IP(src=GATEWAY, dst=guest.ip, proto=17, frag=100) / Raw(MARK),
        "icmp-error": four / ICMP(type=3, code=1) / IP(src=guest.ip, dst=OUTSIDE4) / UDP() / Raw(MARK),
        "udp6-53": six / UDP(sport=53, dport=4000) / Raw(MARK),
        "tcp6-ack": six / TCP(sport=443, dport=80, flags="A", seq=5, ack=9) / Raw(MARK),
        "fragment6": six / IPv6ExtHdrFragment(nh=17, offset=100, id=9) / Raw(MARK),
    }[name]
    with lab.router.packets("eth0") as out, guest.space.packets("eth0") as inside:
        out.send(bytes(Ether(src=mac_of(lab.router, "eth0"), dst=mac_of(lab.node, "eth1")) / packet))
        assert not lab.seen(inside, MARK, 0.2)


def mac_of(space: Namespace, device: str) -> str:
    return space.run("ip", "-br", "link", "show", device).stdout.split()[2]


def test_own_source_from_outside_is_dropped(lab: Lab, guests: dict[str, Guest]) -> None:
    """N71."""
    guest = guests["none"]
    before = lab.drops("in_own_source", guest.tap, "inet")
    with lab.router.packets("eth0") as out, guest.space.packets("eth0") as inside:
        packet = IP(src=guest.ip, dst=guest.ip) / UDP(sport=9, dport=9) / Raw(MARK)
        out.send(bytes(Ether(src=mac_of(lab.router, "eth0"), dst=mac_of(lab.node, "eth1")) / packet))
        assert not lab.seen(inside, MARK, 0.2)
    assert lab.drops("in_own_source", guest.tap, "inet") == before + 1


def test_neighbours_on_one_node_get_the_same_verdicts(lab: Lab, guests: dict[str, Guest]) -> None:
    """N74."""
    asking = guests["none"].space
    for name in ("limited", "protected"):
        # Within one /64, a guest asks for its neighbours by ND; here they are behind the gateway.
        asking.ip(f"-6 route replace {guests[name].ip6}/128 via {GATEWAY6} dev eth0")
        guests[name].space.ip(f"-6 route replace {guests['none'].ip6}/128 via {GATEWAY6} dev eth0")
    assert connects(asking, guests["limited"].ip, 22)
    assert connects(asking, guests["limited"].ip6, 22)
    assert not connects(asking, guests["limited"].ip, 80)
    assert not connects(asking, guests["protected"].ip6, 22)
    assert pings(asking, guests["protected"].ip)


def test_the_node_offers_nothing_but_ping(lab: Lab, guests: dict[str, Guest]) -> None:
    """N29, N64: a service that listens everywhere on the node."""
    guest = guests["none"]
    with lab.node.endpoint(socket.AF_INET6, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 1811))
        listener.listen()
        assert connects(lab.node, NODE_ADDRESS, 1811)
        before = lab.drops("node", guest.tap, "inet")
        assert not connects(guest.space, NODE_ADDRESS, 1811)
        assert lab.drops("node", guest.tap, "inet") > before
    assert pings(guest.space, NODE_ADDRESS)


def test_a_guest_leaves_by_its_uplink_only(lab: Lab, guests: dict[str, Guest]) -> None:
    """N29: networks that the node knows, and the guest's table does not."""
    lab.node.ip("route replace 10.99.0.0/16 dev mgmt")
    with lab.router.packets("eth0") as wire, lab.node.packets("mgmt") as inside:
        thread = threading.Thread(target=pings, args=(guests["none"].space, "10.99.0.1"))
        thread.start()
        assert lab.seen(wire, socket.inet_aton("10.99.0.1"), 2)
        assert not lab.seen(inside, socket.inet_aton("10.99.0.1"), 0.2)
        thread.join()


def test_nothing_is_forwarded_between_others(lab: Lab, guests: dict[str, Guest]) -> None:
    """The node does not become a router for what is no guest's."""
    before = sum_of(lab, "transit")
    with lab.router.packets("eth0") as out:
        packet = IPv6(src=GATEWAY6, dst="2001:db8:77::1") / UDP(sport=9, dport=9) / Raw(MARK)
        lab.node.ip("-6 route replace 2001:db8:77::/64 dev mgmt table 100")
        out.send(bytes(Ether(src=mac_of(lab.router, "eth0"), dst=mac_of(lab.node, "eth1")) / packet))
    deadline = time.monotonic() + 1
    while sum_of(lab, "transit") == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sum_of(lab, "transit") == before + 1


def sum_of(lab: Lab, reason: str) -> int:
    return lab.drops(reason, "eth1", "inet")

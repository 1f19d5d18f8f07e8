# SPDX-License-Identifier: BSD-2-Clause
# ruff: noqa: E501 - one case, one line
"""Hostile frames of docs/threats.md, sent by a guest: each reaches nobody and is counted by its reason."""

from __future__ import annotations

import socket
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.real.network_scripts.lab import GATEWAY, GATEWAY6, GATEWAY_MAC, NODE_ADDRESS, Guest, Lab, Namespace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from scapy.all import (
        ARP,
        BOOTP,
        DHCP,
        GRE,
        ICMP,
        IP,
        LLC,
        SNAP,
        STP,
        TCP,
        UDP,
        Dot1AD,
        Dot1Q,
        Dot3,
        Ether,
        Raw,
    )  # fmt: skip
    from scapy.layers.inet import IPOption_LSRR, IPOption_Router_Alert, IPOption_RR
    from scapy.layers.inet6 import (
        ICMPv6EchoRequest,
        ICMPv6MLQuery,
        ICMPv6ND_NA,
        ICMPv6ND_NS,
        ICMPv6ND_RA,
        ICMPv6ND_Redirect,
        ICMPv6ND_RS,
        ICMPv6NDOptDstLLAddr,
        ICMPv6NDOptPrefixInfo,
        ICMPv6NDOptSrcLLAddr,
        ICMPv6NIQueryIPv6,
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrFragment,
        IPv6ExtHdrHopByHop,
        IPv6ExtHdrRouting,
    )  # fmt: skip

MARK = b"snf-mark-of-test"
OWN, OWN4 = "aa:00:00:00:00:01", "198.51.100.10"
OWN6, OWN_LL = "2001:db8:1:0:a800:ff:fe00:1", "fe80::a800:ff:fe00:1"
FOREIGN, FOREIGN4, FOREIGN6 = "aa:00:00:00:00:02", "198.51.100.11", "2001:db8:1:0:a800:ff:fe00:2"
OUTSIDE4, OUTSIDE6 = "203.0.113.9", "2001:db8:9::9"
ALL_NODES = "33:33:00:00:00:01"


class Case(NamedTuple):
    id: str
    frame: Any
    #: The set that counts it, and the table's family.
    reason: str
    family: str = "netdev"


def eth(src: str = OWN, dst: str = GATEWAY_MAC, **more: int) -> Any:
    return Ether(src=src, dst=dst, **more)


def four(src: str = OWN4, dst: str = OUTSIDE4, **more: Any) -> Any:
    return eth() / IP(src=src, dst=dst, **more)


def six(src: str = OWN6, dst: str = OUTSIDE6, to: str = GATEWAY_MAC, **more: Any) -> Any:
    return eth(dst=to) / IPv6(src=src, dst=dst, **more)


def udp(sport: int = 5000, dport: int = 5000) -> Any:
    return UDP(sport=sport, dport=dport) / Raw(MARK)


def arp(op: int = 1, src: str = OWN, hwsrc: str = OWN, psrc: str = OWN4, pdst: str = GATEWAY, **more: int) -> Any:
    return eth(src=src, dst="ff:ff:ff:ff:ff:ff") / ARP(op=op, hwsrc=hwsrc, psrc=psrc, pdst=pdst, **more)


def na(target: str = OWN6, lladdr: str = OWN, src: str = OWN_LL, hlim: int = 255, **flags: int) -> Any:
    body = ICMPv6ND_NA(tgt=target, **{"R": 0, "S": 0, "O": 1, **flags})
    return six(src, "ff02::1", ALL_NODES, hlim=hlim) / body / ICMPv6NDOptDstLLAddr(lladdr=lladdr)


def ns(target: str = GATEWAY6, lladdr: str = OWN, src: str = OWN6, hlim: int = 255) -> Any:
    head = six(src, "ff02::1:ff00:1", "33:33:ff:00:00:01", hlim=hlim)
    return head / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=lladdr)


RA = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptPrefixInfo(prefix="2001:db8:66::", prefixlen=64)
PLAIN = IP(src=OWN4, dst=OUTSIDE4) / udp()
SIXES = {"to": ALL_NODES}


def boot(**fields: Any) -> Any:
    return BOOTP(chaddr=bytes.fromhex(OWN.replace(":", "")), xid=1, **fields) / DHCP(
        options=[("message-type", "discover"), "end"]
    )


def dhcp_client(payload: Any) -> Any:
    head = eth(dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255")
    return head / UDP(sport=68, dport=67) / payload


def fragment(nh: int, offset: int, more: int) -> Any:
    return IPv6ExtHdrFragment(nh=nh, offset=offset, m=more, id=7)


CASES = (
    *(Case(f"N01-{src}", eth(src=src) / PLAIN, "mac")
      for src in (FOREIGN, "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", GATEWAY_MAC)),
    *(Case(f"N03-vid{vid}", eth() / Dot1Q(vlan=vid) / PLAIN, "vlan") for vid in (0, 1, 5, 4095)),
    Case("N03-stacked", eth() / Dot1Q(vlan=1) / Dot1Q(vlan=5) / PLAIN, "vlan"),
    Case("N03-802.1ad", eth() / Dot1AD(vlan=1) / Dot1Q(vlan=5) / PLAIN, "vlan"),
    Case("N03-arp", eth() / Dot1Q(vlan=0) / ARP(hwsrc=OWN, psrc=OWN4, pdst=GATEWAY), "vlan"),
    Case("N05-snap", Dot3(src=OWN, dst=GATEWAY_MAC) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(code=0x800) / PLAIN,
         "ethertype"),
    Case("N05-snap-vlan0", eth() / Dot1Q(vlan=0, type=60) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(code=0x800) / PLAIN,
         "vlan"),
    *(Case(f"N06-{kind:04x}", eth(type=kind) / Raw(MARK + b"\0" * 40), "ethertype")
      for kind in (0x8863, 0x8864, 0x8847, 0x88CC, 0x88E5, 0x888E, 0x88CA, 0x88A2, 0x8906, 0x88F7, 0x0842, 0x8035, 0x22F0)),
    Case("N07-stp", Dot3(src=OWN, dst="01:80:c2:00:00:00") / LLC() / STP(), "ethertype"),
    Case("N07-pause", eth(dst="01:80:c2:00:00:01", type=0x8808) / Raw(b"\0\1\xff\xff"), "ethertype"),
    Case("N10-request", arp(psrc=FOREIGN4), "arp_sender"),
    Case("N10-reply", arp(op=2, psrc=FOREIGN4), "arp_sender"),
    Case("N11-foreign", arp(psrc=FOREIGN4, pdst=FOREIGN4), "arp_sender"),
    Case("N11-gateway", arp(op=2, psrc=GATEWAY, pdst=GATEWAY), "arp_sender"),
    Case("N12", arp(hwsrc=FOREIGN), "arp_sender"),
    Case("N13-foreign", arp(psrc="0.0.0.0", pdst=FOREIGN4), "arp_sender"),
    Case("N14-hardware", arp(hwtype=6), "arp_form"),
    Case("N14-protocol", arp(ptype=0x86DD), "arp_form"),
    Case("N14-opcode", arp(op=3), "arp_form"),
    Case("N14-truncated", Raw(bytes(arp())[:30]), "arp_form"),
    *(Case(f"N20-{src}", four(src=src) / udp(), "source")
      for src in (FOREIGN4, GATEWAY, NODE_ADDRESS, "198.51.100.255", "198.51.100.0", "0.0.0.0", "127.0.0.1",
                  "169.254.1.1", "224.0.0.1", "240.0.0.1", "255.255.255.255")),
    Case("N21-syn", four(src=FOREIGN4) / TCP(flags="S") / Raw(MARK), "source"),
    Case("N21-established", four(src=FOREIGN4) / TCP(flags="A", sport=22) / Raw(MARK), "source"),
    Case("N21-icmp-error", four(src=FOREIGN4) / ICMP(type=3, code=1) / PLAIN, "source"),
    Case("N21-fragment", four(src=FOREIGN4, flags="MF", frag=10, proto=17) / Raw(MARK), "source"),
    Case("N21-gre", four(src=FOREIGN4) / GRE() / PLAIN, "source"),
    Case("N21-raw", four(src=FOREIGN4, proto=255) / Raw(MARK), "source"),
    *(Case(f"N24-{type(option).__name__}", four(options=[option]) / udp(), "options")
      for option in (IPOption_LSRR(routers=["198.51.100.1"]), IPOption_RR(routers=["0.0.0.0"]), IPOption_Router_Alert())),
    *(Case(f"N25-{kind}", four() / ICMP(type=kind) / Raw(MARK), "icmp") for kind in (5, 9, 10, 13, 14, 17, 18)),
    *(Case(f"N26-{proto}", four(dst="224.0.0.5", proto=proto) / Raw(MARK), "control") for proto in (2, 89, 88, 103, 112)),
    Case("N26-multicast", four(dst="239.1.2.3") / udp(), "multicast"),
    Case("N27-directed", four(dst="198.51.100.255") / udp(), "multicast"),
    Case("N27-limited", four(dst="255.255.255.255") / udp(), "multicast"),
    Case("N27-l2", eth(dst="ff:ff:ff:ff:ff:ff") / PLAIN, "multicast"),
    *(Case(f"N29-{port}", four(dst=NODE_ADDRESS) / TCP(dport=port, flags="S"), "node", "inet")
      for port in (22, 1811, 5080, 10809)),
    *(Case(f"N35-{flags or 'null'}", four() / TCP(flags=flags) / Raw(MARK), "malformed")
      for flags in ("", "SF", "SR")),
    Case("N35-port0", four() / TCP(dport=0, flags="S") / Raw(MARK), "malformed"),
    Case("N40-broadcast", eth(dst="ff:ff:ff:ff:ff:ff") / IP(src=OWN4, dst="255.255.255.255") / udp(67, 68), "dhcp"),
    Case("N40-unicast", four(dst=FOREIGN4) / udp(67, 68), "dhcp"),
    Case("N40-67-67", four(dst=FOREIGN4) / udp(67, 67), "dhcp"),
    Case("N40-other-port", four(dst=FOREIGN4) / udp(1067, 68), "dhcp"),
    Case("N41-chaddr", dhcp_client(BOOTP(chaddr=bytes.fromhex("aa0000000002"))), "dhcp"),
    Case("N41-giaddr", dhcp_client(boot(giaddr=GATEWAY)), "dhcp"),
    Case("N40-from-zero", dhcp_client(boot(op=2)), "dhcp"),
    Case("N42", four(dst=OUTSIDE4) / udp(68, 67), "dhcp"),
    Case("N44-server", six(OWN_LL, "ff02::1", ALL_NODES) / udp(547, 546), "dhcp"),
    Case("N44-global", six() / udp(547, 546), "dhcp"),
    Case("N44-relay", six() / udp(547, 547), "dhcp"),
    *(Case(f"N50-{src}", six(src) / udp(), "source")
      for src in (FOREIGN6, GATEWAY6, "fd00::1", "fe80::1", "ff02::1", "::1", "::ffff:198.51.100.10", "2002:c633:640a::1")),
    Case("N51", six("fe80::1234", "ff02::1", ALL_NODES) / ICMPv6EchoRequest(data=MARK), "source"),
    Case("N52-udp", six("::", "ff02::1", ALL_NODES) / udp(), "source"),
    Case("N52-dad-foreign", six("::", "ff02::1:ff00:2", "33:33:ff:00:00:02", hlim=255) / ICMPv6ND_NS(tgt=FOREIGN6), "nd"),
    Case("N52-dad-option", ns(target=OWN6, src="::"), "nd"),
    Case("N53-foreign", na(target=FOREIGN6), "nd"),
    Case("N53-gateway", na(target=GATEWAY6), "nd"),
    Case("N53-router", na(R=1), "nd"),
    Case("N53-option", na(lladdr=FOREIGN), "nd"),
    Case("N53-doubled", na() / ICMPv6NDOptDstLLAddr(lladdr=FOREIGN), "nd"),
    Case("N53-absent", six(OWN_LL, "ff02::1", ALL_NODES, hlim=255) / ICMPv6ND_NA(tgt=OWN6, R=0, O=1), "nd"),
    Case("N53-second", six(OWN_LL, "ff02::1", ALL_NODES, hlim=255) / ICMPv6ND_NA(tgt=OWN6, R=0)
         / ICMPv6NDOptSrcLLAddr(lladdr=OWN) / ICMPv6NDOptDstLLAddr(lladdr=OWN), "nd"),
    Case("N53-zero-length", six(OWN_LL, "ff02::1", ALL_NODES, hlim=255) / ICMPv6ND_NA(tgt=OWN6, R=0)
         / Raw(b"\x02\x00" + bytes(6)), "nd"),
    Case("N54-option", ns(lladdr=FOREIGN), "nd"),
    Case("N54-source", ns(src=FOREIGN6), "source"),
    Case("N56-plain", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / RA, "ra"),
    Case("N56-zero", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / ICMPv6ND_RA(routerlifetime=0), "ra"),
    Case("N56-spoofed", six("fe80::1", "ff02::1", hlim=255, **SIXES) / RA, "ra"),
    Case("N56-unicast", six(OWN_LL, FOREIGN6, hlim=255) / RA, "ra"),
    Case("N57-destopt", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / IPv6ExtHdrDestOpt() / RA, "exthdr"),
    Case("N57-hopbyhop", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / IPv6ExtHdrHopByHop() / RA, "exthdr"),
    Case("N57-chain", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
         / IPv6ExtHdrDestOpt() / RA, "exthdr"),
    Case("N57-na", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / IPv6ExtHdrDestOpt() / ICMPv6ND_NA(tgt=FOREIGN6), "exthdr"),
    Case("N57-unknown", six(nh=253) / Raw(MARK), "exthdr"),
    Case("N57-ah", six(nh=51) / Raw(b"\x3a\x04" + bytes(22) + MARK), "exthdr"),
    Case("N58-first", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / fragment(58, 0, 1) / RA, "exthdr"),
    Case("N58-atomic", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / fragment(58, 0, 0) / RA, "exthdr"),
    Case("N58-tiny", six() / fragment(6, 0, 1) / Raw(b"\0\x50\0\x50"), "exthdr"),
    Case("N58-nested", six() / fragment(44, 0, 1) / fragment(17, 0, 1) / udp(), "exthdr"),
    Case("N58-hidden", six() / fragment(60, 0, 1) / Raw(b"\x3a\0" + bytes(6)), "exthdr"),
    Case("N59-hops", na(hlim=64), "nd"),
    Case("N59-ns-hops", ns(hlim=64), "nd"),
    Case("N59-code", six(OWN_LL, "ff02::1", hlim=255, **SIXES) / ICMPv6ND_NA(tgt=OWN6, R=0, code=1)
         / ICMPv6NDOptDstLLAddr(lladdr=OWN), "nd"),
    Case("N60-redirect", six(OWN_LL, FOREIGN6, hlim=255) / ICMPv6ND_Redirect(tgt="fe80::9", dst=OUTSIDE6), "icmp"),
    Case("N60-information", six() / ICMPv6NIQueryIPv6(data=OUTSIDE6), "icmp"),
    *(Case(f"N60-{kind}", six(nh=58) / Raw(bytes((kind, 0, 0, 0)) + MARK), "icmp")
      for kind in (138, 141, 142, 144, 147, 148, 151, 155, 200)),
    Case("N61-query", six(OWN_LL, "ff02::1", hlim=1, **SIXES) / IPv6ExtHdrHopByHop() / ICMPv6MLQuery(), "exthdr"),
    Case("N61-bare", six(OWN_LL, "ff02::1", hlim=1, **SIXES) / ICMPv6MLQuery(), "icmp"),
    Case("N62", six() / IPv6ExtHdrRouting(addresses=[GATEWAY6]) / udp(), "exthdr"),
    *(Case(f"N64-{port}", eth() / IPv6(src=OWN_LL, dst="fe80::ce47:52ff:fe4e:4554") / TCP(dport=port, flags="S"), "node",
           "inet") for port in (22, 1811, 5080)),
    Case("N64-group", six(OWN_LL, "ff02::fb", "33:33:00:00:00:fb") / udp(5353, 5353), "multicast"),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_dropped(lab: Lab, guest: Guest, other: Guest, case: Case) -> None:
    assert_dropped(lab, guest, (lab.router, "eth0"), (other.space, "eth0"), case)


def assert_dropped(
    lab: Lab, sender: Guest, outside: tuple[Namespace, str], neighbour: tuple[Namespace, str], case: Case
) -> None:
    before = lab.drops(case.reason, sender.tap, case.family)
    frame = bytes(case.frame)
    with (
        sender.space.packets("eth0") as out,
        outside[0].packets(outside[1]) as wire,
        neighbour[0].packets(neighbour[1]) as next_door,
    ):
        out.send(frame)
        deadline = time.monotonic() + 1
        while lab.drops(case.reason, sender.tap, case.family) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        # What a forwarded frame keeps: all that follows the checksum of its transport header.
        tail = MARK if MARK in frame else frame[34:]
        assert not lab.seen(wire, tail, 0.02)
        assert not lab.seen(next_door, tail, 0.01)
    assert lab.drops(case.reason, sender.tap, case.family) == before + 1, lab.all_drops(sender.tap)


V6_ONLY = (
    Case("N65-udp", eth(src=FOREIGN) / IPv6(src=FOREIGN6, dst=OUTSIDE6) / udp(), "source"),
    Case("N65-echo", eth(src=FOREIGN) / IPv6(src=FOREIGN6, dst=GATEWAY6) / ICMPv6EchoRequest(data=MARK), "source"),
    Case("N65-link-local", eth(src=FOREIGN) / IPv6(src="fe80::a800:ff:fe00:2", dst="ff02::1") / udp(), "source"),
    Case("N65-dad", eth(src=FOREIGN, dst=ALL_NODES) / IPv6(src="::", dst="ff02::1:ff00:2", hlim=255)
         / ICMPv6ND_NS(tgt=FOREIGN6), "nd"),
)  # fmt: skip


@pytest.mark.parametrize("case", V6_ONLY, ids=[case.id for case in V6_ONLY])
def test_absent_family_is_dropped(lab: Lab, guest: Guest, other: Guest, case: Case) -> None:
    assert_dropped(lab, other, (lab.router, "eth0"), (guest.space, "eth0"), case)


def answered(space_guest: Guest, frame: Any, wanted: bytes, lab: Lab) -> bool:
    with space_guest.space.packets("eth0") as channel:
        channel.send(bytes(frame))
        return lab.seen(channel, wanted, 2)


MAC_OF_GATEWAY = bytes.fromhex(GATEWAY_MAC.replace(":", ""))

GOOD: dict[str, tuple[Callable[[], Any], bytes]] = {
    "N13-arp": (arp, bytes.fromhex("0002") + MAC_OF_GATEWAY + socket.inet_aton(GATEWAY)),
    "N54-ns": (ns, socket.inet_pton(socket.AF_INET6, GATEWAY6) + b"\x02\x01" + MAC_OF_GATEWAY),
    "N20-udp": (lambda: four() / ICMP() / Raw(MARK), MARK),
    "N50-echo": (lambda: six() / ICMPv6EchoRequest(data=MARK), MARK),
}


@pytest.mark.parametrize("name", GOOD)
def test_honest_frames_are_answered(lab: Lab, guest: Guest, name: str) -> None:
    make, wanted = GOOD[name]
    lab.router.ip("-6 route replace 2001:db8:1::/64 dev eth0")
    assert answered(guest, make(), wanted, lab), lab.all_drops(guest.tap)


QUIET: dict[str, Callable[[], Any]] = {
    "N11-own": lambda: arp(psrc=OWN4, pdst=OWN4),
    "N13-probe": lambda: arp(psrc="0.0.0.0", pdst=OWN4),
    "N52-dad": lambda: six("::", "ff02::1:ff00:1", "33:33:ff:00:00:01", hlim=255) / ICMPv6ND_NS(tgt=OWN6),
    "N52-dad-nonce": lambda: (
        six("::", "ff02::1:ff00:1", "33:33:ff:00:00:01", hlim=255) / ICMPv6ND_NS(tgt=OWN6) / Raw(b"\x0e\x01abcdef")
    ),
    "N52-rs": lambda: six("::", "ff02::2", "33:33:00:00:00:02", hlim=255) / ICMPv6ND_RS(),
    "N52-rs-option": lambda: (
        six(OWN_LL, "ff02::2", "33:33:00:00:00:02", hlim=255) / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=OWN)
    ),
    "N53-own": na,
    "N53-solicited": lambda: six(OWN6, GATEWAY6, hlim=255) / ICMPv6ND_NA(tgt=OWN6, R=0, S=1, O=0),
    "N61-report": lambda: (
        six(OWN_LL, "ff02::16", "33:33:00:00:00:16", hlim=1)
        / IPv6ExtHdrHopByHop(nh=58)
        / Raw(b"\x8f\0\0\0\0\0\0\0")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", QUIET)
def test_honest_frames_are_not_counted(lab: Lab, guest: Guest, name: str) -> None:
    before = lab.all_drops(guest.tap)
    with guest.space.packets("eth0") as channel:
        channel.send(bytes(QUIET[name]()))
    time.sleep(0.05)
    assert lab.all_drops(guest.tap) == before

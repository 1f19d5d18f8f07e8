# SPDX-License-Identifier: BSD-2-Clause
from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from network_scripts import links


def test_what_is_there_already_is_no_failure() -> None:
    said = "RTNETLINK answers: File exists\nCommand failed -:2\n"
    assert links.failures_of(said) == []


def test_any_other_failure_is_told() -> None:
    said = "RTNETLINK answers: File exists\nCommand failed -:2\n"
    said += "Error: Nexthop has invalid gateway.\nCommand failed -:7\n"
    assert links.failures_of(said) == ["Error: Nexthop has invalid gateway."]


def test_checksum() -> None:
    assert links._checksum(bytes.fromhex("45000073000040004011 0000 c0a80001c0a800c7".replace(" ", ""))) == 0xB861


def test_an_unknown_interface_is_named() -> None:
    with pytest.raises(links.NoInterfaceError, match="there is no interface tap98765"):
        links.index("tap98765")
    assert links.index_or_none("tap98765") is None


def test_announcements_are_well_formed() -> None:
    own = bytes.fromhex("0a00f7e63215")
    arp = links.gratuitous(own, IPv4Address("198.51.100.10"), 1)
    assert len(arp) == 28
    assert arp[14:18] == arp[24:28] == bytes((198, 51, 100, 10))
    packet = links.advertisement(own, IPv6Address("2001:db8::1"))
    assert len(packet) == 40 + 32
    assert IPv6Address(packet[8:24]) == IPv6Address("fe80::800:f7ff:fee6:3215")
    # With the checksum in place, the sum over pseudo-header and body is zero.
    assert links._checksum(packet[8:40] + (32).to_bytes(4) + b"\0\0\0\x3a" + packet[40:]) == 0

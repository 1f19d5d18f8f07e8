# SPDX-License-Identifier: BSD-2-Clause
from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from network_scripts import flows


def test_a_question_is_well_formed() -> None:
    kinds = [kind for kind, _raw in flows.attributes_of(flows.question(IPv4Address("198.51.100.10")))]
    assert kinds == [1, 25]
    assert IPv4Address("198.51.100.10").packed in flows.question(IPv4Address("198.51.100.10"))
    assert flows.question(IPv6Address("2001:db8::1")) == b""


def test_attributes_are_padded_and_walked() -> None:
    data = flows.attribute(1, b"abc") + flows.attribute(18, b"\0\1")
    assert len(data) == 16
    assert [kind for kind, _raw in flows.attributes_of(data)] == [1, 18]
    assert b"".join(raw for _kind, raw in flows.attributes_of(data)) == data


def test_a_broken_message_ends_the_walk() -> None:
    assert list(flows.attributes_of(b"\0\0\1\0" * 4)) == []
    assert list(flows.attributes_of(b"\1")) == []


def test_a_message_says_its_length() -> None:
    made = flows.message(0x101, 0x300, 2, b"abcd")
    assert int.from_bytes(made[:4], "little") == len(made)

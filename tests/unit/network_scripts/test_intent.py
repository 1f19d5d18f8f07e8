# SPDX-License-Identifier: BSD-2-Clause
from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

import pytest

from ganeti_plugin.contract.nic import Nic
from ganeti_plugin.errors import InputError
from network_scripts import intent
from network_scripts.intent import MARK_BASE, AddressError, Profile, TableError, UnsupportedModeError
from tests.unit.ganeti_plugin.contract.test_nic import GOOD

MAC = "cc:47:52:4e:45:54"


def routed(**changes: str) -> intent.Routed:
    return intent.routed(Nic.from_environment({**GOOD, **changes}), MAC, {"public": 7})


def test_both_families() -> None:
    wanted = routed()
    assert wanted.table == 100
    assert wanted.mark == MARK_BASE | 100
    assert wanted.ipv4 is not None
    assert str(wanted.ipv4.gateway) == "198.51.100.1"
    assert wanted.ipv6 is not None
    assert wanted.ipv6.addresses == (IPv6Address("2001:db8:1:0:a800:ff:fe12:3456"),)
    assert wanted.ipv6.link_local == IPv6Address("fe80::a800:ff:fe12:3456")


def test_eui64_flips_the_universal_bit() -> None:
    assert intent.eui64(IPv6Network("2001:db8::/64"), "00:16:3e:00:00:01") == IPv6Address("2001:db8::216:3eff:fe00:1")


def test_an_absent_family_is_absent() -> None:
    assert routed(IP="").ipv4 is None
    assert routed(NETWORK_SUBNET6="").ipv6 is None
    assert routed(NETWORK_SUBNET6="2001:db8::/60").ipv6 is None


def test_an_ipv6_address_of_the_nic_comes_beside_the_one_of_its_mac() -> None:
    ipv6 = routed(IP="2001:db8:1::77").ipv6
    assert ipv6 is not None
    assert [str(address) for address in ipv6.addresses] == ["2001:db8:1::77", "2001:db8:1:0:a800:ff:fe12:3456"]


@pytest.mark.parametrize(("link", "table"), [("1", 1), ("252", 252), ("public", 7), ("16777215", 0xFFFFFF)])
def test_the_table(link: str, table: int) -> None:
    assert routed(LINK=link).table == table


@pytest.mark.parametrize("link", ["0", "253", "254", "255", "16777216", "nosuch", "br0"])
def test_a_table_that_guests_may_not_use(link: str) -> None:
    with pytest.raises(TableError, match=f"the link {link} of NIC 1 of web1.example.com is no routing table"):
        routed(LINK=link)


@pytest.mark.parametrize("mode", ["bridged", "openvswitch", "ext"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(UnsupportedModeError, match=f"has mode {mode}, which this version does not set up"):
        routed(MODE=mode)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"IP": "198.51.100.1"}, "is the network's gateway"),
        ({"IP": "198.51.101.1"}, "is not in the network"),
        ({"IP": "198.51.100.0"}, "is no host's address"),
        ({"IP": "198.51.100.255"}, "is no host's address"),
        ({"IP": "2001:db8:1::1"}, "is the network's gateway"),
        ({"IP": "fe80::1"}, "is a link-local one"),
        ({"MAC": MAC}, "is the gateway's MAC address"),
    ],
)
def test_an_address_that_makes_no_sense(changes: dict[str, str], fault: str) -> None:
    with pytest.raises(AddressError, match=fault):
        routed(**changes)


UUID = GOOD["INTERFACE_UUID"]


@pytest.mark.parametrize(
    ("tags", "profile"),
    [
        ("", Profile.UNPROTECTED),
        ("protected", Profile.PROTECTED),
        ("synnefo:network:1:limited", Profile.LIMITED),
        (f"synnefo:network:{UUID}:limited", Profile.LIMITED),
        ("synnefo:network:front:protected", Profile.PROTECTED),
        ("synnefo:network:0:protected", Profile.UNPROTECTED),
        ("synnefo:network:back:protected", Profile.UNPROTECTED),
        ("protected synnefo:network:1:limited", Profile.LIMITED),
        ("synnefo:network:1:limited unprotected", Profile.UNPROTECTED),
        ("synnefo:network:limited", Profile.LIMITED),
        ("other:1:limited", Profile.UNPROTECTED),
        ("limitedx synnefo:network:1:limitedx", Profile.UNPROTECTED),
    ],
)
def test_the_last_matching_tag_wins(tags: str, profile: Profile) -> None:
    assert routed(TAGS=tags).profile is profile


def test_every_refusal_is_the_callers_fault() -> None:
    assert issubclass(AddressError, InputError)
    assert issubclass(TableError, InputError)
    assert issubclass(UnsupportedModeError, InputError)

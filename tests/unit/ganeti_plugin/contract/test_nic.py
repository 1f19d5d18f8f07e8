# SPDX-License-Identifier: BSD-2-Clause
from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network

import pytest

from ganeti_plugin.contract.nic import Mode, Nic, interface_from_environment
from ganeti_plugin.errors import MalformedVariableError, MissingVariableError

GOOD = {
    "INSTANCE": "web1.example.com",
    "MAC": "AA:00:00:12:34:56",
    "MODE": "routed",
    "INTERFACE": "tap3",
    "INTERFACE_INDEX": "1",
    "INTERFACE_UUID": "8a2d1a40-91c2-4d9e-8d5b-6a3f1b1fd3b1",
    "INTERFACE_NAME": "front",
    "TAGS": "limited web:front",
    "IP": "198.51.100.10",
    "LINK": "100",
    "NETWORK_NAME": "public",
    "NETWORK_TAGS": "ip-less-routed public",
    "NETWORK_SUBNET": "198.51.100.0/24",
    "NETWORK_GATEWAY": "198.51.100.1",
    "NETWORK_SUBNET6": "2001:db8:1::/64",
    "NETWORK_GATEWAY6": "2001:db8:1::1",
}

#: What Ganeti always gives.
NEEDED = ("INSTANCE", "MAC", "MODE", "INTERFACE", "INTERFACE_INDEX", "INTERFACE_UUID", "LINK")


def test_everything_is_read() -> None:
    nic = Nic.from_environment(GOOD)
    assert (nic.interface, nic.position, nic.name, nic.instance) == ("tap3", 1, "front", "web1.example.com")
    assert nic.mac == "aa:00:00:12:34:56"
    assert nic.mode is Mode.ROUTED
    assert nic.ip == IPv4Address("198.51.100.10")
    assert nic.tags == ("limited", "web:front")
    assert nic.network is not None
    assert nic.network.tags == ("ip-less-routed", "public")
    assert nic.network.subnet6 == IPv6Network("2001:db8:1::/64")


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_variable_is_named(name: str) -> None:
    environment = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(MissingVariableError, match=rf"^ifup: the environment variable {name} is missing"):
        Nic.from_environment(environment)


@pytest.mark.parametrize("name", sorted(set(GOOD) - {*NEEDED, "IP", "NETWORK_NAME"}))
def test_an_absent_option_is_no_fault(name: str) -> None:
    absent = Nic.from_environment({key: value for key, value in GOOD.items() if key != name})
    assert absent == Nic.from_environment({**GOOD, name: ""}) != Nic.from_environment(GOOD)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INSTANCE", "web1; reboot"), ("INSTANCE", "-x"), ("INSTANCE", "a/../b"), ("INSTANCE", "x" * 300),
        ("MAC", "aa:00:00:12:34"), ("MAC", "01:00:5e:00:00:01"), ("MAC", "00:00:00:00:00:00"),
        ("MAC", "aa-00-00-12-34-56"),
        ("MODE", "Routed"), ("INTERFACE", "eth0"), ("INTERFACE", "tap"), ("INTERFACE", "tap0 drop"),
        ("INTERFACE", "gnt.com.0"), ("INTERFACE", "tap1234567890"), ("INTERFACE", "tap٣"),
        ("INTERFACE_INDEX", "-1"), ("INTERFACE_INDEX", "x"), ("INTERFACE_UUID", "../../etc/passwd"),
        ("INTERFACE_NAME", "a\nb"), ("TAGS", 'ok b"ad'), ("TAGS", "a;b"), ("TAGS", " ".join(["x"] * 2000)),
        ("IP", "198.51.100"), ("IP", "198.51.100.10/24"), ("IP", "0.0.0.0"), ("IP", "127.0.0.1"), ("IP", "224.0.0.1"),
        ("IP", "255.255.255.255"), ("IP", "fe80::1%eth0"), ("IP", "ff02::1"), ("LINK", "main; true"), ("LINK", "a b"),
        ("VLAN", "eins"), ("NETWORK_NAME", "../x"), ("NETWORK_TAGS", "`id`"), ("NETWORK_SUBNET", "198.51.100.0/33"),
        ("NETWORK_SUBNET", "198.51.100.10/32"), ("NETWORK_SUBNET", "2001:db8::/64"), ("NETWORK_GATEWAY", "10.0.0.1"),
        ("NETWORK_GATEWAY", "2001:db8::1"),
        ("NETWORK_SUBNET6", "198.51.100.0/24"), ("NETWORK_GATEWAY6", "198.51.100.1"),
    ],
)  # fmt: skip
def test_a_malformed_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(MalformedVariableError) as caught:
        Nic.from_environment({**GOOD, name: value})
    assert f"the environment variable {name} has the value" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_down_needs_the_interface_alone() -> None:
    assert interface_from_environment({"INTERFACE": "tap9"}) == "tap9"
    with pytest.raises(MissingVariableError, match="^ifdown: .* INTERFACE is missing"):
        interface_from_environment({})

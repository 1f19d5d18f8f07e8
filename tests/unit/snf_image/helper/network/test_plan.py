# SPDX-License-Identifier: BSD-2-Clause
"""From NICs to interfaces: the decision table of snf-image 0.23.1."""

from __future__ import annotations

import dataclasses

import pytest

from snf_image.helper.errors import TaskError
from snf_image.helper.network import plan
from tests.unit.snf_image.helper.support import NIC, STATIC, request_of


def planned(**changes: object) -> plan.Interface:
    nic = dataclasses.replace(NIC, **changes)  # type: ignore[arg-type] # the tests' own keywords
    return plan.interfaces(request_of(nics=(nic,), default_nic_config=""))[0]


def test_a_routed_nic_is_static() -> None:
    assert planned() == STATIC


@pytest.mark.parametrize(
    ("changes", "ipv4", "ipv6"),
    [
        ({"tags": ("dhcp",)}, "dhcp", "static"),
        ({"subnet": None}, "dhcp", "static"),
        ({"ip": None}, "", "static"),
        ({"gateway6": None}, "static", ""),
        ({"subnet6": None}, "static", "slaac"),
        ({"tags": ("dhcpv6",)}, "static", "dhcp"),
        ({"tags": ("stateless_dhcpv6",)}, "static", "slaac_dhcp"),
        ({"tags": ("stateless_dhcpv6", "dhcpv6")}, "static", "dhcp"),
        ({"tags": ("dhcpv6", "nfdhcpd")}, "dhcp", "slaac_dhcp"),
        ({"tags": ("other",)}, "static", "static"),
    ],
)
def test_the_decision(changes: dict[str, object], ipv4: str, ipv6: str) -> None:
    found = planned(**changes)
    assert (found.ipv4, found.ipv6) == (ipv4, ipv6)


@pytest.mark.parametrize(
    ("default", "ipv4", "ipv6"),
    [
        ("", "", ""),
        ("dhcp", "dhcp", ""),
        ("slaac", "", "slaac"),
        ("dhcpv6", "", "dhcp"),
        ("dhcp+slaac_dhcp", "dhcp", "slaac_dhcp"),
    ],
)
def test_the_only_nic_falls_back(default: str, ipv4: str, ipv6: str) -> None:
    bare = dataclasses.replace(NIC, ip=None, gateway6=None)
    found = plan.interfaces(request_of(nics=(bare,), default_nic_config=default))
    assert (found[0].ipv4, found[0].ipv6) == (ipv4, ipv6)
    two = plan.interfaces(request_of(nics=(bare, dataclasses.replace(bare, index=1)), default_nic_config=default))
    assert {(each.ipv4, each.ipv6) for each in two} == {("", "")}


@pytest.mark.parametrize(
    "changes",
    [
        {"mac": "aa:00:00:12:34:5g"},
        {"mac": "aa:00:00:12:34\n56"},
        {"ip": "198.51.100.7\nup evil"},
        {"subnet": "198.51.100.0/99"},
        {"gateway": "gateway"},
        {"subnet6": "2001:db8::/48"},
        {"subnet6": "nonsense"},
        {"gateway6": "fe80::1; reboot"},
    ],
)
def test_nonsense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(TaskError):
        planned(**changes)


def test_eui64_flips_the_universal_bit() -> None:
    assert plan.eui64("52:54:00:12:34:56", "2001:db8::/64") == "2001:db8::5054:ff:fe12:3456/64"

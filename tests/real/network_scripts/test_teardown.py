# SPDX-License-Identifier: BSD-2-Clause
"""Removing the package takes everything back from the kernel, but not while a guest is here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ganeti_plugin.run import run
from network_scripts import links, teardown
from network_scripts.links import PROTOCOL

TAP = "tap987"
NIC = {
    "INTERFACE": TAP,
    "INTERFACE_INDEX": "0",
    "INTERFACE_UUID": "11111111-2222-3333-4444-555555555555",
    "INSTANCE": "web1",
    "MAC": "aa:00:00:12:34:56",
    "MODE": "routed",
    "LINK": "100",
    "IP": "198.51.100.10",
    "NETWORK_NAME": "public",
    "NETWORK_SUBNET": "198.51.100.0/24",
    "NETWORK_GATEWAY": "198.51.100.1",
    "NETWORK_SUBNET6": "2001:db8:1::/64",
    "NETWORK_GATEWAY6": "2001:db8:1::1",
}


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    """The node goes on with its base ruleset, without our guest."""
    yield
    run(["ip", "link", "delete", TAP], allowed=(0, 1))
    run(["snf-network", "setup"])


def ours() -> list[str]:
    """Everything of ours that the kernel holds."""
    tables = run(["nft", "list", "tables"]).stdout.decode().splitlines()
    found = [table for table in tables if "snf_network" in table]
    for family in ("-4", "-6"):
        found += [str(rule) for rule in links.query(family, "rule", "list") if rule.get("priority") in (20000, 20001)]
        listed = run(["ip", family, "route", "show", "table", "all", "proto", str(PROTOCOL)]).stdout.decode()
        found += listed.splitlines()
    for name in ("ipv4/conf/eth1/forwarding", "ipv4/conf/eth1/proxy_arp", "ipv6/conf/all/forwarding"):
        if Path("/proc/sys/net", name).read_text(encoding="ascii").strip() != "0":
            found.append(name)
    return found


def test_nothing_is_left() -> None:
    run(["snf-network", "setup"])
    assert len(ours()) > 8
    teardown.tear_down()
    assert ours() == []
    teardown.tear_down()


def test_a_guest_keeps_its_filters() -> None:
    run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap"])
    run(["/etc/ganeti/kvm-vif-bridge"], env=NIC)
    before = ours()
    with pytest.raises(teardown.GuestsHereError, match=f"guests have NICs on this node: {TAP} "):
        teardown.tear_down()
    assert ours() == before
    run(["ip", "link", "delete", TAP])
    teardown.tear_down()
    assert ours() == []

# SPDX-License-Identifier: BSD-2-Clause
"""NICs come, go and come back under the same name; errors and other software in between (threats, section 4)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.real.network_scripts.lab import GATEWAY, GATEWAY6, TREE, Guest, Lab


@pytest.fixture
def fresh(lab: Lab) -> Iterator[Guest]:
    """A guest that is not up yet; all of it is gone afterwards."""
    numbers = {guest.number for guest in lab.guests}
    guest = lab.guest(max(numbers, default=20) + 1)
    yield guest
    lab.node.run("ip", "link", "del", guest.tap, check=False)
    lab.node.run(str(TREE / "snf-network"), "reap")
    guest.space.close()


def elements(lab: Lab, tap: str) -> set[str]:
    """Every element and chain that names the interface, as nft lists it."""
    found = set()
    for family in ("netdev", "arp", "inet"):
        listed = lab.node.run("nft", "-j", "list", "table", family, "snf_network").stdout
        for item in json.loads(listed)["nftables"]:
            body = item.get("set") or item.get("map") or {}
            if body.get("name", "").startswith(("rate_", "drops_")):
                continue
            found |= {
                f"{body['name']} {json.dumps(raw)}" for raw in body.get("elem", ()) if f'"{tap}"' in json.dumps(raw)
            }
            if item.get("chain", {}).get("name") == tap:
                found.add("chain")
    return found


def pings(guest: Guest, address: str = GATEWAY) -> bool:
    """Several tries: a neighbour that did not answer yet is asked again only after a second."""
    return guest.space.run("ping", "-n", "-c4", "-i0.4", "-W1", address, check=False).returncode == 0


def reap(lab: Lab) -> str:
    return lab.node.run(str(TREE / "snf-network"), "reap").stderr


def test_silent_until_up(fresh: Guest) -> None:
    assert not pings(fresh)
    fresh.lab.node.ip(f"link set {fresh.tap} up")
    assert not pings(fresh)
    fresh.up()
    assert pings(fresh)
    assert pings(fresh, GATEWAY6)


def test_up_twice_changes_nothing(fresh: Guest) -> None:
    fresh.up()
    before = elements(fresh.lab, fresh.tap)
    fresh.up()
    assert elements(fresh.lab, fresh.tap) == before
    assert pings(fresh)


def test_kernel_state_is_ours_and_complete(fresh: Guest) -> None:
    fresh.up()
    node = fresh.lab.node
    routes = json.loads(node.run("ip", "-j", "route", "show", "table", "100", "dev", fresh.tap).stdout)
    assert [(route["dst"], route["protocol"]) for route in routes] == [(fresh.ip, "83")]
    routes6 = json.loads(node.run("ip", "-6", "-j", "route", "show", "table", "100", "dev", fresh.tap).stdout)
    assert [route["dst"] for route in routes6] == [fresh.ip6]
    proxies = json.loads(node.run("ip", "-6", "-j", "neigh", "show", "proxy").stdout)
    assert {(proxy["dst"], proxy["dev"]) for proxy in proxies} >= {(fresh.ip6, "eth1"), (GATEWAY6, fresh.tap)}
    link = json.loads(node.run("ip", "-j", "link", "show", fresh.tap).stdout)[0]
    assert link["address"] == "cc:47:52:4e:45:54"


def test_reap_after_a_guest_vanished(fresh: Guest) -> None:
    fresh.up()
    fresh.unplug()
    assert elements(fresh.lab, fresh.tap)
    assert fresh.tap in reap(fresh.lab)
    assert elements(fresh.lab, fresh.tap) == set()
    assert fresh.ip6 not in fresh.lab.node.run("ip", "-6", "neigh", "show", "proxy").stdout
    assert reap(fresh.lab) == ""


def test_reap_and_down_spare_live_guests(fresh: Guest) -> None:
    """Later Ganeti calls "down" while the guest still runs, more than once."""
    fresh.up()
    before = elements(fresh.lab, fresh.tap)
    assert reap(fresh.lab) == ""
    for _ in range(2):
        fresh.lab.node.run(str(TREE / "ganeti-ifdown"), env=fresh.environment)
    assert elements(fresh.lab, fresh.tap) == before
    assert pings(fresh)


def test_a_name_taken_over_by_another_guest(fresh: Guest) -> None:
    """L04: no "down" came; the new guest of that name gets nothing of the old one's."""
    fresh.up()
    fresh.unplug()
    fresh.plug()
    assert not pings(fresh)
    # The same machine address, another IPv4 address: the old one must be foreign now.
    fresh.up(IP="198.51.100.200")
    listed = "\n".join(elements(fresh.lab, fresh.tap))
    assert "198.51.100.200" in listed
    assert f'"{fresh.ip}"' not in listed
    assert not pings(fresh)
    fresh.space.ip(f"addr del {fresh.ip}/24 dev eth0", "addr add 198.51.100.200/24 dev eth0")
    fresh.space.ip(f"route replace default via {GATEWAY}")
    assert pings(fresh)


def test_a_name_taken_over_but_never_brought_up(fresh: Guest) -> None:
    fresh.up()
    fresh.unplug()
    fresh.plug()
    fresh.lab.node.ip(f"link set {fresh.tap} up")
    assert fresh.tap in reap(fresh.lab)
    assert elements(fresh.lab, fresh.tap) <= {"chain"}
    assert not pings(fresh)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IP", "198.51.100.300"), ("IP", "10.0.0.1"), ("IP", "198.51.100.1"), ("IP", "198.51.100.255"),
        ("MAC", "01:00:00:00:00:01"), ("MAC", "cc:47:52:4e:45:54"), ("MAC", "x"), ("LINK", "255"), ("LINK", "no;table"),
        ("LINK", "ABSENT"), ("MODE", "bridged"), ("MODE", "ABSENT"), ("INTERFACE_UUID", "../x"), ("TAGS", "a\\nb"),
        ("INSTANCE", "$(id)"), ("NETWORK_SUBNET", "198.51.100.0/33"), ("NETWORK_GATEWAY6", "198.51.100.1"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_and_leaves_the_nic_silent(fresh: Guest, variable: str, value: str) -> None:
    """L03, L08."""
    done = fresh.up(check=False, **{variable: value})
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert elements(fresh.lab, fresh.tap) == set()
    assert not pings(fresh)


def test_a_failure_half_way_leaves_the_nic_silent(fresh: Guest) -> None:
    """L02: the kernel refuses a route (its uplink has no such gateway's family), after the rules are in."""
    done = fresh.up(check=False, NETWORK_GATEWAY6="ff02::1")
    assert done.returncode != 0
    fresh.lab.node.ip("link set lo down")
    try:
        fresh.lab.node.run("ip", "link", "add", "link", fresh.tap, "name", "x0", "type", "vlan", "id", "5", check=False)
    finally:
        fresh.lab.node.ip("link set lo up")
    assert elements(fresh.lab, fresh.tap) == set()
    assert not pings(fresh)


@pytest.mark.parametrize("damage", ["nft flush ruleset", "nft delete table netdev snf_network", "ip rule flush"])
def test_other_software_took_our_state_away(fresh: Guest, damage: str) -> None:
    """L07: the next NIC repairs what is the node's."""
    fresh.lab.node.run("bash", "-c", damage)
    if damage == "ip rule flush":
        fresh.lab.node.ip("rule add pref 32766 lookup main", "rule add pref 32767 lookup default")
    fresh.up()
    assert pings(fresh)
    assert pings(fresh, GATEWAY6)


def test_the_base_ruleset_loaded_again_keeps_guests(fresh: Guest) -> None:
    """L11: upgrade or restart of the service."""
    fresh.up()
    before = elements(fresh.lab, fresh.tap)
    rules = fresh.lab.node.run("nft", "list", "chain", "netdev", "snf_network", "guest").stdout
    fresh.lab.node.run(str(TREE / "snf-network"), "setup")
    assert elements(fresh.lab, fresh.tap) == before
    assert fresh.lab.node.run("nft", "list", "chain", "netdev", "snf_network", "guest").stdout == rules
    assert pings(fresh)


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_a_tighter_profile_ends_what_the_old_one_let_in(fresh: Guest, family: str) -> None:
    """N73: an open connection does not go on as an established one."""
    fresh.up()
    kind = socket.AF_INET6 if family == "ip6" else socket.AF_INET
    address = getattr(fresh, family)
    with (
        fresh.space.endpoint(kind, socket.SOCK_STREAM) as listener,
        fresh.lab.router.endpoint(kind, socket.SOCK_STREAM) as client,
    ):
        listener.bind((address, 80))
        listener.listen()
        client.settimeout(5)
        client.connect((address, 80))
        server = listener.accept()[0]
        server.settimeout(1)
        client.send(b"one")
        assert server.recv(3) == b"one"
        fresh.up(TAGS="limited")
        client.send(b"two")
        with pytest.raises(TimeoutError):
            server.recv(3)
        server.close()


def test_announced_on_the_uplink(fresh: Guest) -> None:
    """L05: the outside learns at once where the guest is."""
    with fresh.lab.router.packets("eth0") as wire:
        fresh.up()
        target = socket.inet_aton(fresh.ip)
        assert fresh.lab.seen(wire, bytes.fromhex("0800 0604 0001".replace(" ", "")), 1)
        assert fresh.lab.seen(wire, b"\x88\x00", 1)
        del target
    neighbours = fresh.lab.router.run("ip", "neigh", "show", check=False).stdout
    assert "FAILED" not in neighbours


def test_many_at_once(lab: Lab) -> None:
    """L06: parallel starts lose nothing."""
    import concurrent.futures

    guests = [lab.guest(number) for number in range(60, 68)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda guest: guest.up(), guests))
    for guest in guests:
        assert pings(guest)
        assert len(elements(lab, guest.tap)) == len(elements(lab, guests[0].tap))
    for guest in guests:
        guest.unplug()
        guest.space.close()
    reap(lab)
    assert all(elements(lab, guest.tap) == set() for guest in guests)


def test_the_node_speaks_no_ipv6_to_a_guest_without_it(fresh: Guest) -> None:
    """N65, the other way."""
    fresh.up(NETWORK_SUBNET6="ABSENT", NETWORK_GATEWAY6="ABSENT")
    assert pings(fresh)
    assert fresh.lab.node.run("ip", "-6", "addr", "show", "dev", fresh.tap).stdout == ""
    assert fresh.ip6 not in fresh.lab.node.run("ip", "-6", "neigh", "show", "proxy").stdout

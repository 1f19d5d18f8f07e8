# SPDX-License-Identifier: BSD-2-Clause
"""Wanted state as commands of libnftables (JSON), and what it lists as elements. Pure.

Rules are never put together as text: the base ruleset is a fixed file, a NIC is elements of its sets and maps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from network_scripts.intent import Routed

TABLE = "snf_network"
FAMILIES = ("netdev", "arp", "inet")

#: First of all hooks on a device.
PRIORITY = -500

#: The sets in which packets themselves make elements.
COUNTERS = (
    *(
        ("netdev", f"drops_{reason}")
        for reason in (
            *("vlan", "mac", "ethertype", "arp_form", "arp_sender", "source", "options", "exthdr", "dhcp", "control"),
            *("icmp", "ra", "nd", "multicast", "malformed", "rate"),
        )
    ),
    *(
        ("inet", f"drops_{reason}")
        for reason in (
            *("no_entry", "path", "node", "dhcp", "transit", "in_own_source", "in_dhcp", "in_redirect", "in_invalid"),
            *("in_profile", "in_no_entry"),
        )
    ),
)

Command = Mapping[str, object]
Value = str | int


class Element(NamedTuple):
    """An element of a set, or with `value` of a map; a key of several parts is a concatenation."""

    family: str
    name: str
    key: tuple[Value, ...]
    value: Value | None = None

    @property
    def interface(self) -> Value:
        """Every set of ours has the interface as the first part of its key."""
        return self.key[0]


def elements(nic: Routed, generation: int) -> Iterator[Element]:
    """All that the firewall must know about a NIC. `generation` is the index of its interface.

    The owner comes first: it is created, so that left-overs of an earlier guest by that name make the whole fail.
    """
    tap = nic.tap
    yield Element("inet", "owner", (tap,), generation)
    yield Element("inet", "guests", (tap,))
    yield Element("netdev", "macs", (tap, nic.mac))
    yield Element("netdev", "routed", (tap,))
    yield Element("netdev", "marks", (tap,), nic.mark)
    yield Element("inet", "profiles", (tap,), f"profile_{nic.profile.value}")
    mac = number(int(nic.mac.replace(":", ""), 16))
    if nic.ipv4:
        yield Element("netdev", "addr4", (tap, str(nic.ipv4.address)))
        yield Element("inet", "addr4", (tap, str(nic.ipv4.address)))
        yield Element("netdev", "dhcp_chaddr", (tap, mac))
        if nic.ipv4.subnet:
            yield Element("netdev", "broadcasts", (tap, str(nic.ipv4.subnet.broadcast_address)))
        if nic.ipv4.gateway:
            yield Element("arp", "arp_source", (tap,), str(nic.ipv4.gateway))
    if nic.ipv6:
        yield Element("netdev", "nd_lladdr", (tap, mac))
        for address in (*nic.ipv6.addresses, nic.ipv6.link_local):
            yield Element("netdev", "addr6", (tap, str(address)))
            yield Element("inet", "addr6", (tap, str(address)))
            yield Element("netdev", "nd_target", (tap, number(int(address))))


def number(value: int) -> str:
    """A number too large for JSON's integers, as nft reads it."""
    return f"{value:#x}"


def uplink_elements(uplink: str) -> tuple[Element, ...]:
    """What the firewall must know about an uplink. ARP requests of the node, which has no address in the guests'
    networks, leave it as those of nobody (a probe, RFC 5227): any other address would be foreign there.
    """
    return Element("inet", "uplinks", (uplink,)), Element("arp", "arp_source", (uplink,), "0.0.0.0")


def elements_of_nic(nic: Routed, generation: int, uplink: str) -> list[Element]:
    """Every element that goes with the NIC."""
    return [*elements(nic, generation), Element("inet", "paths", (nic.tap, uplink))]


def replace(tap: str, remembered: Iterable[Element]) -> list[Command]:
    """The commands that take away what an earlier guest of this name was given, and what was counted for it."""
    old = list(remembered)
    if not old:
        return []
    counted = [Element(family, name, (tap,)) for family, name in COUNTERS]
    # Adding first makes deleting succeed whether the packets' path has made the element or not.
    emptied = [change(verb, element) for element in counted for verb in ("add", "delete")]
    return [*(change("delete", element) for element in old), *emptied]


def up(nic: Routed, generation: int, uplink: str) -> list[Command]:
    """The commands that open a silent NIC, for one transaction."""
    wanted = [*elements_of_nic(nic, generation, uplink), *uplink_elements(uplink)]
    chain = {"family": "netdev", "table": TABLE, "name": nic.tap}
    hook = {"type": "filter", "hook": "ingress", "dev": nic.tap, "prio": PRIORITY, "policy": "drop"}
    rule = {"family": "netdev", "table": TABLE, "chain": nic.tap, "expr": [{"jump": {"target": "guest"}}]}
    return [
        *(change("create" if element.name == "owner" else "add", element) for element in wanted),
        {"add": {"chain": {**chain, **hook}}},
        {"flush": {"chain": chain}},
        {"add": {"rule": rule}},
    ]


def down(taps: Iterable[str], present: Iterable[Element], chains: Iterable[str]) -> list[Command]:
    """The commands that remove every element and chain of these interfaces, out of what is present."""
    gone = set(taps)
    removed = [change("delete", element) for element in present if element.interface in gone]
    for name in sorted(gone & set(chains)):
        chain = {"family": "netdev", "table": TABLE, "name": name}
        removed += [{"flush": {"chain": chain}}, {"delete": {"chain": chain}}]
    return removed


def change(verb: str, element: Element) -> Command:
    """Add, create or delete one element."""
    key: object = element.key[0] if len(element.key) == 1 else {"concat": list(element.key)}
    value: object = element.value
    if element.name == "profiles":
        value = {"goto": {"target": element.value}}
    entry = key if element.value is None or verb == "delete" else [key, value]
    body = {"family": element.family, "table": TABLE, "name": element.name, "elem": [entry]}
    return {verb: {"element": body}}


def encode(commands: Iterable[Command]) -> bytes:
    return json.dumps({"nftables": list(commands)}).encode()


class Listing(NamedTuple):
    """What the kernel holds of ours."""

    elements: tuple[Element, ...]
    #: Packets dropped so far, by set of reason and interface.
    drops: Mapping[tuple[str, str], int]
    #: The chains of guest interfaces.
    chains: tuple[str, ...]

    def interfaces(self) -> set[str]:
        """Guest interfaces that anything is known about."""
        named = {str(element.interface) for element in self.elements}
        return {name for name in named | set(self.chains) if is_guest(name)}


def is_guest(name: str) -> bool:
    return re.fullmatch(r"tap[0-9]{1,9}", name) is not None


def decode(documents: Iterable[bytes]) -> Listing:
    """Read what `nft -j list table` printed for each of our tables."""
    found: list[Element] = []
    drops: dict[tuple[str, str], int] = {}
    chains: list[str] = []
    for document in documents:
        for item in json.loads(document)["nftables"]:
            body = item.get("set") or item.get("map")
            if body:
                found += [_element(body["family"], body["name"], raw, drops) for raw in body.get("elem", ())]
            if "chain" in item and is_guest(item["chain"]["name"]):
                chains.append(item["chain"]["name"])
    return Listing(elements=tuple(found), drops=drops, chains=tuple(chains))


def _element(family: str, name: str, raw: Any, drops: dict[tuple[str, str], int]) -> Element:
    value = None
    if isinstance(raw, list):
        raw, value = raw
    if isinstance(raw, dict) and "elem" in raw:
        body = raw["elem"]
        raw = body["val"]
        if "counter" in body:
            drops[name, raw] = drops.get((name, raw), 0) + body["counter"]["packets"]
    parts = raw["concat"] if isinstance(raw, dict) else [raw]
    key = tuple(part if isinstance(part, str | int) else json.dumps(part) for part in parts)
    return Element(family, name, key, value if isinstance(value, str | int | None) else json.dumps(value))


def base(template: str) -> str:
    """The text that flushes every chain that the base ruleset declares, so that loading it again replaces its rules."""
    declared, _separator, _rules = template.partition("%%{flush}")
    lines = []
    family = ""
    for line in declared.splitlines():
        table = re.match(rf"table (\w+) {TABLE} ", line)
        chain = re.match(r"\tchain (\w+) ", line)
        if table:
            family = table[1]
        elif chain:
            lines.append(f"flush chain {family} {TABLE} {chain[1]}")
    return "\n".join(lines)

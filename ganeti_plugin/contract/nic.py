# SPDX-License-Identifier: BSD-2-Clause
"""The call of a NIC script (Ganeti's kvm-ifup, or network/<mode>/up of later versions) as a record.

Every value is checked here, once: names that later stand in the firewall, in routes and in files can hold nothing but
the characters of their kind (threats L03, L08). Named tuples and not dataclasses: the program must end within
milliseconds, and importing dataclasses alone costs ten.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from ganeti_plugin.contract.variables import Variables

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}"
_LINK = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
_TAP = r"tap[0-9]{1,9}"
_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_MAC = r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"
_TAG = r"[A-Za-z0-9_.+*/:@-]{1,128}"

#: Ganeti has no limit of its own; ours keeps a hostile list from costing anything.
TAGS_LIMIT = 1024

#: The least IPv4 prefix with room for a gateway and a guest.
_LEAST_ROOM = 31


class Mode(StrEnum):
    BRIDGED = "bridged"
    ROUTED = "routed"
    OPENVSWITCH = "openvswitch"
    EXT = "ext"


class Network(NamedTuple):
    """The Ganeti network that the NIC is in."""

    name: str  # NETWORK_NAME
    tags: tuple[str, ...]  # NETWORK_TAGS
    subnet: IPv4Network | None  # NETWORK_SUBNET
    gateway: IPv4Address | None  # NETWORK_GATEWAY
    subnet6: IPv6Network | None  # NETWORK_SUBNET6
    gateway6: IPv6Address | None  # NETWORK_GATEWAY6


class Nic(NamedTuple):
    """One NIC of one instance, as Ganeti hands it over."""

    interface: str  # INTERFACE: the tap on the node, for instance tap0
    position: int  # INTERFACE_INDEX: the place among the instance's NICs
    uuid: str  # INTERFACE_UUID
    name: str | None  # INTERFACE_NAME
    instance: str  # INSTANCE
    mac: str  # MAC, in lower case
    mode: Mode  # MODE
    ip: IPv4Address | IPv6Address | None  # IP
    link: str | None  # LINK: a routing table (routed) or a bridge
    vlan: str | None  # VLAN
    tags: tuple[str, ...]  # TAGS: the instance's tags
    network: Network | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Nic:
        """Read the variables of the call; the process's own environment unless one is given."""
        variables = Variables(os.environ if environment is None else environment, "ifup")
        mode = Mode(variables.one_of("MODE", tuple(Mode)))
        link = variables.optional("LINK")
        if link is not None or mode is not Mode.EXT:
            link = variables.matching("LINK", _LINK, "the name or number of a routing table, or a bridge's name")
        name = variables.optional("INTERFACE_NAME")
        if name is not None:
            name = variables.matching("INTERFACE_NAME", _NAME, "a name")
        vlan = variables.optional("VLAN")
        if vlan is not None:
            vlan = variables.matching("VLAN", r"[.:]?[0-9]{1,4}(:[0-9]{1,4}){0,64}", "a VLAN as Ganeti writes it")
        return cls(
            interface=interface_of(variables),
            position=variables.integer("INTERFACE_INDEX"),
            uuid=variables.matching("INTERFACE_UUID", _UUID, "a UUID").lower(),
            name=name,
            instance=variables.matching("INSTANCE", _NAME, "the name of an instance"),
            mac=_mac(variables),
            mode=mode,
            ip=_address(variables, "IP"),
            link=link,
            vlan=vlan,
            tags=_tags(variables, "TAGS"),
            network=_network(variables),
        )


def interface_of(variables: Variables) -> str:
    """The guest interface of a call; only names that the base ruleset knows as a guest's are accepted."""
    return variables.matching("INTERFACE", _TAP, "the name of a guest's interface (tap and a number)")


def interface_from_environment(environment: Mapping[str, str] | None = None) -> str:
    """INTERFACE alone, for taking a NIC down."""
    return interface_of(Variables(os.environ if environment is None else environment, "ifdown"))


def _mac(variables: Variables) -> str:
    mac = variables.matching("MAC", _MAC, "a MAC address").lower()
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise variables.malformed("MAC", "the MAC address of one interface (it is a group's or zero)")
    return mac


def _address(variables: Variables, name: str) -> IPv4Address | IPv6Address | None:
    text = variables.optional(name)
    if text is None:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        raise variables.malformed(name, "an IP address") from None
    scoped = isinstance(address, IPv6Address) and address.scope_id is not None
    if scoped or address.is_multicast or address.is_unspecified or address.is_loopback or _is_reserved4(address):
        raise variables.malformed(name, "an address that a host can have")
    return address


def _is_reserved4(address: IPv4Address | IPv6Address) -> bool:
    return isinstance(address, IPv4Address) and (int(address) >> 28 == 0xF or int(address) >> 24 == 0)


def _address4(variables: Variables, name: str) -> IPv4Address | None:
    address = _address(variables, name)
    if isinstance(address, IPv6Address):
        raise variables.malformed(name, "an IPv4 address")
    return address


def _address6(variables: Variables, name: str) -> IPv6Address | None:
    address = _address(variables, name)
    if isinstance(address, IPv4Address):
        raise variables.malformed(name, "an IPv6 address")
    return address


def _tags(variables: Variables, name: str) -> tuple[str, ...]:
    import re

    tags = variables.words(name)
    if len(tags) > TAGS_LIMIT:
        raise variables.malformed(name, f"a list of at most {TAGS_LIMIT} tags")
    for tag in tags:
        if not re.fullmatch(_TAG, tag, re.ASCII):
            raise variables.malformed(name, "a list of tags as Ganeti allows them")
    return tags


def _network(variables: Variables) -> Network | None:
    if variables.optional("NETWORK_NAME") is None:
        return None
    subnet, subnet6 = variables.optional("NETWORK_SUBNET"), variables.optional("NETWORK_SUBNET6")
    try:
        network4 = IPv4Network(subnet, strict=False) if subnet else None
    except ValueError:
        raise variables.malformed("NETWORK_SUBNET", "an IPv4 network") from None
    try:
        network6 = IPv6Network(subnet6, strict=False) if subnet6 else None
    except ValueError:
        raise variables.malformed("NETWORK_SUBNET6", "an IPv6 network") from None
    if network4 is not None and network4.prefixlen > _LEAST_ROOM:
        raise variables.malformed("NETWORK_SUBNET", "an IPv4 network with room for a gateway and a guest")
    gateway = _address4(variables, "NETWORK_GATEWAY")
    if gateway is not None and network4 is not None and gateway not in network4:
        raise variables.malformed("NETWORK_GATEWAY", "an address in NETWORK_SUBNET")
    return Network(
        name=variables.matching("NETWORK_NAME", _NAME, "the name of a network"),
        tags=_tags(variables, "NETWORK_TAGS"),
        subnet=network4,
        gateway=gateway,
        subnet6=network6,
        gateway6=_address6(variables, "NETWORK_GATEWAY6"),
    )

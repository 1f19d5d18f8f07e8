# SPDX-License-Identifier: BSD-2-Clause
"""From a NIC to the state that the node shall have for it. Pure: no kernel, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from ganeti_plugin.contract.nic import Mode, Nic
from ganeti_plugin.errors import InputError

#: Routing tables are told apart by packet marks: this, plus the number of the table.
MARK_BASE = 0x5F000000

#: What fits beside MARK_BASE.
TABLE_LIMIT = 0xFFFFFF

#: The tables that the kernel itself uses (local, main, default): guests never route by them.
RESERVED_TABLES = (0, 253, 254, 255)

#: The only prefix length from which a guest's address follows from its MAC.
EUI64_PREFIX = 64

TAG_PREFIX = "synnefo:network:"


class UnsupportedModeError(InputError):
    template = "NIC {index} of {instance} has mode {mode}, which this version does not set up"
    hint = "use a routed NIC (gnt-network connect --nic-parameters mode=routed,link=TABLE)"


class TableError(InputError):
    template = "the link {link} of NIC {index} of {instance} is no routing table"
    hint = (
        "a routed NIC's link is a table's number (1 to 16777215, not 253 to 255) or its name in /etc/iproute2/rt_tables"
    )


class AddressError(InputError):
    template = "NIC {index} of {instance} has the address {address}, which {fault}"


class Profile(StrEnum):
    """A firewall profile: what may begin a conversation with the guest."""

    UNPROTECTED = "unprotected"
    PROTECTED = "protected"
    LIMITED = "limited"


class Family4(NamedTuple):
    address: IPv4Address
    subnet: IPv4Network | None
    gateway: IPv4Address | None


class Family6(NamedTuple):
    addresses: tuple[IPv6Address, ...]
    link_local: IPv6Address
    subnet: IPv6Network | None
    gateway: IPv6Address | None


class Routed(NamedTuple):
    """The wanted state of a routed NIC. A family that is None is dropped altogether."""

    tap: str
    mac: str
    gateway_mac: str
    table: int
    ipv4: Family4 | None
    ipv6: Family6 | None
    profile: Profile

    @property
    def mark(self) -> int:
        return MARK_BASE | self.table


def routed(nic: Nic, gateway_mac: str, tables: Mapping[str, int]) -> Routed:
    """What the node must do for a routed NIC. `tables` are the names of routing tables.

    Raises InputError when the NIC makes no sense.
    """
    facts = {"index": nic.position, "instance": nic.instance}
    if nic.mode is not Mode.ROUTED:
        raise UnsupportedModeError(mode=nic.mode.value, **facts)
    if nic.mac == gateway_mac.lower():
        raise AddressError(address=nic.mac, fault="is the gateway's MAC address", **facts)
    return Routed(
        tap=nic.interface,
        mac=nic.mac,
        gateway_mac=gateway_mac,
        table=_table(nic, tables),
        ipv4=_family4(nic),
        ipv6=_family6(nic),
        profile=profile_of(nic),
    )


def _table(nic: Nic, tables: Mapping[str, int]) -> int:
    link = nic.link or ""
    table = int(link) if link.isdigit() else tables.get(link, 0)
    if table in RESERVED_TABLES or table > TABLE_LIMIT:
        raise TableError(link=link, index=nic.position, instance=nic.instance)
    return table


def _family4(nic: Nic) -> Family4 | None:
    if not isinstance(nic.ip, IPv4Address):
        return None
    subnet = nic.network.subnet if nic.network else None
    gateway = nic.network.gateway if nic.network else None
    fault = ""
    if nic.ip == gateway:
        fault = "is the network's gateway"
    elif subnet is not None and nic.ip not in subnet:
        fault = f"is not in the network {subnet}"
    elif subnet is not None and subnet.prefixlen < 31 and nic.ip in (subnet.network_address, subnet.broadcast_address):
        fault = f"is no host's address in {subnet}"
    if fault:
        raise AddressError(index=nic.position, instance=nic.instance, address=nic.ip, fault=fault)
    return Family4(address=nic.ip, subnet=subnet, gateway=gateway)


def _family6(nic: Nic) -> Family6 | None:
    subnet = nic.network.subnet6 if nic.network else None
    gateway = nic.network.gateway6 if nic.network else None
    addresses = [nic.ip] if isinstance(nic.ip, IPv6Address) else []
    if subnet is not None and subnet.prefixlen == EUI64_PREFIX:
        addresses.append(eui64(subnet, nic.mac))
    if not addresses:
        return None
    for address in addresses:
        if address == gateway or address.is_link_local:
            fault = "is the network's gateway" if address == gateway else "is a link-local one"
            raise AddressError(index=nic.position, instance=nic.instance, address=address, fault=fault)
    unique = tuple(dict.fromkeys(addresses))
    return Family6(addresses=unique, link_local=link_local(nic.mac), subnet=subnet, gateway=gateway)


def eui64(prefix: IPv6Network, mac: str) -> IPv6Address:
    """The address that a host makes of its MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return prefix.network_address + int.from_bytes(identifier)


def link_local(mac: str) -> IPv6Address:
    return eui64(IPv6Network("fe80::/64"), mac)


def profile_of(nic: Nic) -> Profile:
    """The firewall profile by the instance's tags: the last that names this NIC, or every NIC, wins."""
    return last_profile(nic.tags, {nic.uuid, str(nic.position), nic.name or nic.uuid})


def last_profile(tags: Sequence[str], names: set[str]) -> Profile:
    chosen = Profile.UNPROTECTED
    known = {profile.value for profile in Profile}
    for tag in tags:
        target, separator, word = tag.removeprefix(TAG_PREFIX).rpartition(":")
        if word in known and (not separator or (tag.startswith(TAG_PREFIX) and target in names)):
            chosen = Profile(word)
    return chosen

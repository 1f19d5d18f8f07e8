# SPDX-License-Identifier: BSD-2-Clause
"""From Ganeti's NICs to what each interface shall do (as snf-image 0.23.1 decides it). Pure.

One decision differs from the original: IPv6 without a DHCPv6 tag is not left to router advertisements but set to the
address that they would yield, the EUI-64 one, which is also the only one that the node's filter lets through. So a
guest has IPv6 whether or not advertisements are served.
"""

from __future__ import annotations

import dataclasses
import ipaddress

from snf_image.helper.errors import TaskError
from snf_image.protocol import Nic, Request

DHCP = "dhcp"
STATIC = "static"
SLAAC = "slaac"
SLAAC_DHCP = "slaac_dhcp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interface:
    """`ipv4` is "", dhcp or static; `ipv6` is "", dhcp, slaac, slaac_dhcp or static. Addresses carry their prefix."""

    name: str
    mac: str
    ipv4: str = ""
    address: str = ""
    gateway: str = ""
    ipv6: str = ""
    address6: str = ""
    gateway6: str = ""


def checked_mac(value: str) -> str:
    parts = value.lower().split(":")
    if len(parts) != 6 or any(len(part) != 2 or not set(part) <= set("0123456789abcdef") for part in parts):
        raise TaskError(f"{value[:40]!r} is not a MAC address")
    return ":".join(parts)


def eui64(mac: str, subnet6: str) -> str:
    """The address that an interface gives itself in a network of 64 bits of prefix, with that prefix."""
    network = _network6(subnet6)
    if network.prefixlen != 64:
        raise TaskError(f"the IPv6 network {network} has no prefix of 64 bits, so there is no EUI-64 address in it")
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return f"{network.network_address + int.from_bytes(identifier, 'big')}/64"


def _network6(text: str) -> ipaddress.IPv6Network:
    try:
        return ipaddress.IPv6Network(text, strict=False)
    except ValueError:
        raise TaskError(f"{text[:80]!r} is not an IPv6 network") from None


def _address4(ip: str, subnet: str) -> str:
    try:
        prefix = ipaddress.IPv4Network(subnet, strict=False).prefixlen
        return f"{ipaddress.IPv4Address(ip)}/{prefix}"
    except ValueError:
        raise TaskError(f"{ip[:40]!r} in {subnet[:40]!r} is not an IPv4 address in a network") from None


def _gateway(text: str | None, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> str:
    if not text:
        return ""
    try:
        return str(kind(text))
    except ValueError:
        raise TaskError(f"{text[:80]!r} is not a gateway's address") from None


def ipv6_mode(nic: Nic, request: Request) -> str:
    """The tags are read in their order, and a later one wins."""
    mode = STATIC if nic.subnet6 else SLAAC
    for tag in nic.tags:
        if tag in request.stateful_dhcpv6_tags:
            mode = DHCP
        elif tag in request.stateless_dhcpv6_tags:
            mode = SLAAC_DHCP
    return mode


def interface(nic: Nic, request: Request) -> Interface:
    """What one NIC's interface does."""
    plan = Interface(name=f"eth{nic.index}", mac=checked_mac(nic.mac))
    if nic.ip:
        if not nic.subnet or any(tag in request.dhcp_tags for tag in nic.tags):
            plan = dataclasses.replace(plan, ipv4=DHCP)
        else:
            gateway = _gateway(nic.gateway, ipaddress.IPv4Address)
            plan = dataclasses.replace(plan, ipv4=STATIC, address=_address4(nic.ip, nic.subnet), gateway=gateway)
    if nic.gateway6:
        mode = ipv6_mode(nic, request)
        plan = dataclasses.replace(plan, ipv6=mode)
        if mode == STATIC:
            address6 = eui64(plan.mac, nic.subnet6 or "")
            gateway6 = _gateway(nic.gateway6, ipaddress.IPv6Address)
            plan = dataclasses.replace(plan, address6=address6, gateway6=gateway6)
    return plan


def interfaces(request: Request) -> list[Interface]:
    """All interfaces; the only one of an instance falls back to the node's default when Ganeti knows no address."""
    plans = [interface(nic, request) for nic in sorted(request.nics, key=lambda nic: nic.index)]
    if len(plans) == 1 and not plans[0].ipv4 and not plans[0].ipv6:
        words = request.default_nic_config.split("+") if request.default_nic_config else []
        ipv4 = DHCP if DHCP in words else ""
        ipv6 = next((mode for word, mode in _DEFAULT_IPV6 if word in words), "")
        plans[0] = dataclasses.replace(plans[0], ipv4=ipv4, ipv6=ipv6)
    return plans


_DEFAULT_IPV6 = (("dhcpv6", DHCP), ("slaac", SLAAC), ("slaac_dhcp", SLAAC_DHCP))

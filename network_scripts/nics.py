# SPDX-License-Identifier: BSD-2-Clause
"""Bringing one NIC up. It is silent until everything is in place: its link is down while its rules are made, the rules
appear in one transaction, and any error leaves it down and without rules (threats R6, L01, L02).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from ganeti_plugin import files, log
from ganeti_plugin.contract.nic import Nic
from ganeti_plugin.errors import CommandError, Error
from ganeti_plugin.settings import Network
from network_scripts import apply, flows, intent, links, node, records, render
from network_scripts.intent import Routed

#: Of a guest's interface on the node.
SYSCTLS_IPV4 = (("forwarding", "1"), ("proxy_arp", "1"), ("rp_filter", "0"), ("send_redirects", "0"))
SYSCTLS_IPV6 = (
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_redirects", "0"),
    ("accept_dad", "0"),
    ("dad_transmits", "0"),
    ("forwarding", "1"),
    ("proxy_ndp", "1"),
)


def up(nic: Nic, settings: Network) -> Routed:
    """Set a routed NIC up. Raises Error, and the NIC stays silent."""
    wanted = intent.routed(nic, settings.gateway_mac, links.table_names())
    if not links.has_ipv6():
        wanted = wanted._replace(ipv6=None)
    generation = links.index(wanted.tap)
    uplink = node.uplink_of(wanted.table, settings)
    try:
        if not node.is_ready():
            node.set_up(settings)
        node.set_uplink_sysctls(uplink)
        _prepare_tap(wanted)
        _open_firewall(wanted, generation, uplink, settings)
        _forget_flows(wanted)
        _route(wanted, uplink)
    except BaseException:
        silence(wanted.tap)
        raise
    _announce(wanted, uplink)
    return wanted


def silence(tap: str) -> None:
    """Take a NIC's link and rules away, as far as they are there; never hides the first error."""
    with contextlib.suppress(Error):
        links.batch(4, [f"link set dev {tap} down"])
    with contextlib.suppress(Error), files.locked(node.lock_file(), timeout=10):
        present = apply.listing()
        if present is not None:
            apply.transact(render.down([tap], present.elements, present.chains))
            records.forget(tap)


def _prepare_tap(wanted: Routed) -> None:
    """What the kernel must know of the tap before its link is up."""
    for name, value in SYSCTLS_IPV4:
        links.set_sysctl(f"ipv4/conf/{wanted.tap}/{name}", value)
    links.set_sysctl(f"ipv4/neigh/{wanted.tap}/proxy_delay", "0")
    if not links.has_ipv6():
        return
    # To a guest without IPv6, the node does not speak it either.
    links.set_sysctl(f"ipv6/conf/{wanted.tap}/disable_ipv6", "0" if wanted.ipv6 else "1")
    for name, value in SYSCTLS_IPV6:
        links.set_sysctl(f"ipv6/conf/{wanted.tap}/{name}", value)
    links.set_sysctl(f"ipv6/neigh/{wanted.tap}/proxy_delay", "0")


def _open_firewall(wanted: Routed, generation: int, uplink: str, settings: Network) -> None:
    """One transaction; when it is refused, more of an earlier guest is there than is remembered, or less, or the base
    ruleset is not.
    """
    commands = render.up(wanted, generation, uplink)
    with files.locked(node.lock_file(), timeout=20):
        remembered = records.read(wanted.tap)
        records.write(wanted.tap, render.elements_of_nic(wanted, generation, uplink))
        try:
            apply.transact([*render.replace(wanted.tap, remembered), *commands])
            return
        except CommandError as error:
            log.debug("replacing what is known about %s: %s", wanted.tap, error)
        present = apply.listing()
        if present is None:
            node.set_up(settings)
            present = apply.listing()
        old = render.down([wanted.tap], present.elements, present.chains) if present else []
        apply.transact([*old, *commands])


def _forget_flows(wanted: Routed) -> None:
    """Hold connections that were opened under another profile to the new one, before the link is up."""
    addresses: list[IPv4Address | IPv6Address] = [wanted.ipv4.address] if wanted.ipv4 else []
    addresses += wanted.ipv6.addresses if wanted.ipv6 else ()
    for address in addresses:
        if records.profile_changes(address, wanted.profile.value):
            flows.forget(address)


def _route(wanted: Routed, uplink: str) -> None:
    """Routes, neighbours and, in case other software took them away, the policy rules (threat L07)."""
    first = [f"link set dev {wanted.tap} address {wanted.gateway_mac} up"]
    links.batch(4, [*node.table_commands(4, wanted.table, uplink), *first, *_commands4(wanted, uplink)])
    if wanted.ipv6:
        links.batch(6, [*node.table_commands(6, wanted.table, uplink), *_commands6(wanted, uplink)])


def _commands4(wanted: Routed, uplink: str) -> Sequence[str]:
    ipv4 = wanted.ipv4
    if ipv4 is None:
        return []
    tail = f"table {wanted.table} proto {links.PROTOCOL}"
    commands = [
        f"route replace {ipv4.address}/32 dev {wanted.tap} {tail}",
        f"neigh replace {ipv4.address} lladdr {wanted.mac} dev {wanted.tap} nud permanent",
    ]
    if ipv4.subnet:
        commands.append(f"route replace {ipv4.subnet} dev {uplink} {tail}")
    if ipv4.gateway:
        commands.append(f"route replace default via {ipv4.gateway} dev {uplink} onlink {tail}")
    return commands


def _commands6(wanted: Routed, uplink: str) -> Sequence[str]:
    ipv6 = wanted.ipv6
    assert ipv6 is not None
    tail = f"table {wanted.table} proto {links.PROTOCOL}"
    neighbour = f"lladdr {wanted.mac} dev {wanted.tap} nud permanent"
    commands = [f"neigh replace {ipv6.link_local} {neighbour}"]
    for address in ipv6.addresses:
        commands += [
            f"route replace {address}/128 dev {wanted.tap} {tail}",
            f"neigh replace {address} {neighbour}",
            f"neigh replace proxy {address} dev {uplink} protocol {links.PROTOCOL}",
        ]
    if ipv6.subnet:
        commands.append(f"route replace {ipv6.subnet} dev {uplink} {tail}")
    if ipv6.gateway:
        commands += [
            f"neigh replace proxy {ipv6.gateway} dev {wanted.tap} protocol {links.PROTOCOL}",
            f"route replace default via {ipv6.gateway} dev {uplink} onlink {tail}",
        ]
    return commands


def _announce(wanted: Routed, uplink: str) -> None:
    """Tell the outside where the guest is now. A failure costs time, not safety: it is logged."""
    try:
        addresses4 = (wanted.ipv4.address,) if wanted.ipv4 else ()
        addresses6 = wanted.ipv6.addresses if wanted.ipv6 else ()
        links.announce(uplink, addresses4, addresses6)
    except (OSError, Error) as error:
        log.warning("the addresses of %s were not announced on %s: %s", wanted.tap, uplink, error)

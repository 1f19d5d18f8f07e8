# SPDX-License-Identifier: BSD-2-Clause
"""Removes what vanished guest interfaces left behind.

Ganeti 3.0 never says that a NIC went down; guests that switch themselves off trigger nothing at all. So what is to be
removed follows from what exists (threats R7, L04): a guest's elements carry the index of the interface that they
were made for, a proxied address is kept while a route of ours leads to it by a guest's interface.
"""

from __future__ import annotations

from typing import NamedTuple

from ganeti_plugin import files, log
from network_scripts import apply, links, node, records, render
from network_scripts.links import Proxy
from network_scripts.render import Listing


class Reaped(NamedTuple):
    """What was removed."""

    interfaces: tuple[str, ...]
    proxies: tuple[Proxy, ...]


def reap() -> Reaped:
    """Remove the state of vanished guest interfaces. Harmless when there is none, and beside live guests."""
    with files.locked(node.lock_file(), timeout=20):
        interfaces = _reap_firewall()
        proxies = _reap_proxies()
    if interfaces or proxies:
        names = ", ".join((*interfaces, *(str(proxy.address) for proxy in proxies)))
        log.info("removed the network state of vanished guests: %s", names)
    return Reaped(tuple(interfaces), tuple(proxies))


def _reap_firewall() -> list[str]:
    present = apply.listing()
    if present is None:
        return []
    live = {name: links.index_or_none(name) for name in present.interfaces()}
    gone = stale(present, live)
    apply.transact(render.down(gone, present.elements, present.chains))
    for tap in gone:
        records.forget(tap)
    return gone


def stale(present: Listing, live: dict[str, int | None]) -> list[str]:
    """The interfaces whose state belongs to no live interface. Pure."""
    owners = {str(e.key[0]): e.value for e in present.elements if (e.family, e.name) == ("inet", "owner")}
    return sorted(
        name for name, index in live.items() if index is None or (name in owners and str(owners[name]) != str(index))
    )


def _reap_proxies() -> list[Proxy]:
    found = [proxy for proxy in links.proxies() if not render.is_guest(proxy.device)]
    if not found:
        return []
    routed = links.guest_addresses()
    gone = [proxy for proxy in found if proxy.address not in routed]
    links.batch(6, [f"neigh del proxy {proxy.address} dev {proxy.device}" for proxy in gone])
    return gone

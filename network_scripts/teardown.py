# SPDX-License-Identifier: BSD-2-Clause
"""Takes back what `node.set_up` did, when the package is removed: no rule, route or switch of ours stays on the node.

Refused while a guest's interface is here, for that guest would lose its filters, and the others their protection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ganeti_plugin import files
from ganeti_plugin.errors import StateError
from network_scripts import apply, cleanup, links, node, render
from network_scripts.render import Listing


class GuestsHereError(StateError):
    template = "guests have NICs on this node: {names}"
    hint = "stop or migrate their instances first"
    #: The package's removal stops at this, and at nothing else.
    exit_status = 3


def tear_down() -> None:
    """Remove everything of ours. Harmless when there is nothing. Raises GuestsHereError."""
    cleanup.reap()
    with files.locked(node.lock_file(), timeout=20):
        present = apply.listing()
        if present is not None:
            guests = sorted(name for name in present.interfaces() if links.index_or_none(name) is not None)
            if guests:
                raise GuestsHereError(names=", ".join(guests))
            _close(present)
            apply.transact([{"delete": {"table": {"family": f, "name": render.TABLE}}} for f in render.FAMILIES])
        for family in (4, 6) if links.has_ipv6() else (4,):
            links.batch(family, _removals(family))


def _close(present: Listing) -> None:
    """Switch forwarding and answering for others off again, before the rules that bounded them go."""
    uplinks = [str(e.key[0]) for e in present.elements if (e.family, e.name) == ("inet", "uplinks")]
    for device in filter(links.exists, uplinks):
        for name in ("forwarding", "proxy_arp"):
            links.set_sysctl(f"ipv4/conf/{device}/{name}", "0")
        if links.has_ipv6():
            for name in ("forwarding", "proxy_ndp"):
                links.set_sysctl(f"ipv6/conf/{device}/{name}", "0")
    if any((e.family, e.name) == ("inet", "closed") for e in present.elements):
        _close_ipv6(uplinks)


def _close_ipv6(uplinks: list[str]) -> None:
    """It was we who switched IPv6 forwarding on; the one switch sets all interfaces', so theirs are put back."""
    names = [name for name in os.listdir("/proc/sys/net/ipv6/conf") if name != "all"]
    own = [name for name in names if name not in uplinks and links.sysctl(f"ipv6/conf/{name}/forwarding") == "1"]
    links.set_sysctl("ipv6/conf/all/forwarding", "0")
    for name in own:
        links.set_sysctl(f"ipv6/conf/{name}/forwarding", "1")


def _removals(family: int) -> Iterator[str]:
    """Commands of ip(8) for every policy rule and route that carries our protocol number."""
    for rule in links.query(f"-{family}", "rule", "list"):
        if rule.get("priority") in (node.PREFERENCE_UPLINK, node.PREFERENCE_GUEST):
            yield f"rule del pref {rule['priority']} protocol {links.PROTOCOL}"
    # `route flush` leaves an IPv6 default route that is unreachable (iproute2 6.1), such as ends every table of ours.
    for route in links.query(f"-{family}", "route", "show", "table", "all", "proto", str(links.PROTOCOL)):
        if route.get("type") == "unreachable":
            yield f"route del unreachable {route['dst']} table {route['table']} metric {route['metric']}"
    yield f"route flush table all proto {links.PROTOCOL}"

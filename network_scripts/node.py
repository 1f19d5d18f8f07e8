# SPDX-License-Identifier: BSD-2-Clause
"""What the node needs before its first guest: the base ruleset, forwarding, policy rules, and uplinks that answer for
guests. Done at boot, before Ganeti; a NIC that finds it missing does it again.

Forwarding is switched on for uplinks and guest interfaces, not for the node. IPv6 has only one switch for forwarding:
it is set, the other interfaces keep their own setting (so that they still listen to router advertisements), and
the base ruleset does not forward IPv6 that comes in by them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ganeti_plugin.errors import ConfigError, StateError
from ganeti_plugin.settings import Network
from network_scripts import apply, links, render
from network_scripts.intent import MARK_BASE, RESERVED_TABLES, TABLE_LIMIT
from network_scripts.render import Element

#: Places of our policy rules: before main (32766), with room around them.
PREFERENCE_UPLINK = 20000
PREFERENCE_GUEST = 20001

#: The metric of the route that ends a table, behind every other route.
LAST_METRIC = 0xFFFFFFFF

LOCK_DIRECTORY = Path("/run/snf-network")


class NoUplinkError(StateError):
    template = "no uplink is known for routing table {table}"
    hint = 'name it in /etc/snf-ganeti/snf-ganeti.toml: [network] uplinks = {{ "{table}" = "INTERFACE" }}'


class MissingUplinkError(StateError):
    template = "the uplink {uplink} of routing table {table} does not exist on this node"
    hint = "make the interface, or correct [network] uplinks in /etc/snf-ganeti/snf-ganeti.toml"


def lock_file() -> Path:
    """Held while elements of a guest's interface are replaced or removed."""
    LOCK_DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    return LOCK_DIRECTORY / "lock"


def uplinks(settings: Network) -> dict[int, str]:
    """The configured uplinks by the number of their table."""
    names = links.table_names()
    found = {}
    for link, device in settings.uplinks.items():
        table = int(link) if link.isdigit() else names.get(link, 0)
        if table in RESERVED_TABLES or table > TABLE_LIMIT:
            raise ConfigError(faults=f"network.uplinks: {link!r} is no routing table that guests can have")
        if not device or len(device) > 15 or not all(c.isalnum() or c in "._-@" for c in device):
            raise ConfigError(faults=f"network.uplinks: {device!r} is no name of an interface")
        found[table] = device
    return found


def uplink_of(table: int, settings: Network) -> str:
    """The interface that leads outside for a table: as configured, else that of the table's default route."""
    device = uplinks(settings).get(table) or links.default_device(table)
    if device is None:
        raise NoUplinkError(table=table)
    if not links.exists(device):
        raise MissingUplinkError(uplink=device, table=table)
    return device


def set_up(settings: Network) -> None:
    """Everything, for every configured uplink. May be repeated at any time."""
    apply.load_base()
    _forward()
    missing = []
    for table, device in uplinks(settings).items():
        if links.exists(device):
            prepare_uplink(table, device)
        else:
            missing.append(MissingUplinkError(uplink=device, table=table))
    if missing:
        raise missing[0]


def is_ready() -> bool:
    """Whether forwarding is as `set_up` left it."""
    return not links.has_ipv6() or links.sysctl("ipv6/conf/all/forwarding") == "1"


def _forward() -> None:
    """Switch IPv6 forwarding on without changing how other interfaces behave.

    And let the kernel's own answers (ping, "packet too big") go back by the table of the guest that they are for.
    """
    links.set_sysctl("ipv4/fwmark_reflect", "1")
    if not links.has_ipv6():
        return
    links.set_sysctl("ipv6/fwmark_reflect", "1")
    names = os.listdir("/proc/sys/net/ipv6/conf")
    closed = [name for name in names if name != "all" and links.sysctl(f"ipv6/conf/{name}/forwarding") == "0"]
    links.set_sysctl("ipv6/conf/all/forwarding", "1")
    for name in closed:
        links.set_sysctl(f"ipv6/conf/{name}/forwarding", "0")
    entries = [Element("inet", "closed", (name,)) for name in closed if name not in ("default", "lo")]
    flush: render.Command = {"flush": {"set": {"family": "inet", "table": render.TABLE, "name": "closed"}}}
    guests = [entry for entry in entries if not render.is_guest(str(entry.key[0]))]
    apply.transact([flush, *(render.change("add", entry) for entry in guests)])


def prepare_uplink(table: int, device: str) -> None:
    """Make an uplink answer for the guests of a table, and their packets follow that table."""
    set_uplink_sysctls(device)
    # An uplink that appears after the start was counted among the others, whose IPv6 is not forwarded.
    closed = Element("inet", "closed", (device,))
    apply.transact(
        [
            *(render.change("add", entry) for entry in render.uplink_elements(device)),
            *(render.change(verb, closed) for verb in ("add", "delete")),
        ]
    )
    for family in (4, 6) if links.has_ipv6() else (4,):
        links.batch(family, table_commands(family, table, device))


def set_uplink_sysctls(device: str) -> None:
    for name, value in {"forwarding": "1", "rp_filter": "0", "send_redirects": "0", "proxy_arp": "1"}.items():
        links.set_sysctl(f"ipv4/conf/{device}/{name}", value)
    links.set_sysctl(f"ipv4/neigh/{device}/proxy_delay", "0")
    if links.has_ipv6():
        for name, value in {"forwarding": "1", "proxy_ndp": "1", "accept_redirects": "0"}.items():
            links.set_sysctl(f"ipv6/conf/{device}/{name}", value)
        links.set_sysctl(f"ipv6/neigh/{device}/proxy_delay", "0")


def table_commands(family: int, table: int, device: str) -> Sequence[str]:
    """The commands that lead a table's packets to it, and no further: what it does not know is unreachable.

    Guests' packets carry a mark from the first hook, so there is one rule for a table, not one for a guest.
    """
    default = "0.0.0.0/0" if family == 4 else "::/0"
    return (
        f"link set dev {device} up",
        f"rule add iif {device} lookup {table} pref {PREFERENCE_UPLINK} protocol {links.PROTOCOL}",
        f"rule add fwmark {MARK_BASE | table:#x} lookup {table} pref {PREFERENCE_GUEST} protocol {links.PROTOCOL}",
        f"route replace unreachable {default} metric {LAST_METRIC} table {table} proto {links.PROTOCOL}",
    )

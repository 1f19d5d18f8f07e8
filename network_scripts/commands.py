# SPDX-License-Identifier: BSD-2-Clause
"""What the executables do: ganeti-ifup, ganeti-ifdown, and snf-network for the node."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from ganeti_plugin import config, log
from ganeti_plugin.contract import nic as contract
from ganeti_plugin.errors import InputError, StateError

if TYPE_CHECKING:
    from network_scripts.render import Listing

USAGE = """usage: snf-network COMMAND

  setup     load the base ruleset and prepare the uplinks (at boot; may be repeated)
  reap      remove the state of guest interfaces that are gone
  teardown  take everything back that setup did (when the package is removed; not while guests are here)
  status    show guests, and the frames dropped for them by reason
"""


class UsageError(InputError):
    template = "unknown command {command!r}"
    hint = "snf-network --help lists the commands"


class NotSetUpError(StateError):
    template = "the base ruleset is not loaded"
    hint = "run 'systemctl start snf-network'"


def ifup() -> int:
    """Ganeti brings a NIC up: its environment says which."""
    from network_scripts import nics

    nic = contract.Nic.from_environment()
    done = nics.up(nic, config.load().network)
    addresses = [str(done.ipv4.address)] if done.ipv4 else []
    addresses += [str(address) for address in done.ipv6.addresses] if done.ipv6 else []
    shown = ", ".join(addresses) or "no address"
    log.info("NIC %s of %s is up on %s: %s, %s", nic.position, nic.instance, done.tap, shown, done.profile.value)
    return 0


def ifdown() -> int:
    """A NIC goes down. Later Ganeti calls this while the guest still runs, and repeatedly: a live one is left alone."""
    from network_scripts import cleanup

    contract.interface_from_environment()
    cleanup.reap()
    return 0


def node_command() -> int:
    """The command line of snf-network."""
    arguments = sys.argv[1:]
    if arguments in ([], ["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        return 0
    if len(arguments) != 1 or arguments[0] not in ("setup", "reap", "status", "teardown"):
        raise UsageError(command=" ".join(arguments)[:80])
    if arguments == ["status"]:
        return _status()
    if arguments == ["teardown"]:
        from network_scripts import teardown

        teardown.tear_down()
        return 0
    if arguments == ["setup"]:
        from network_scripts import node

        node.set_up(config.load().network)
    from network_scripts import cleanup

    cleanup.reap()
    return 0


def _status() -> int:
    from network_scripts import apply

    present = apply.listing()
    if present is None:
        raise NotSetUpError
    for tap in sorted(present.interfaces()):
        sys.stdout.write(f"{tap}: {_facts(present, tap)}\n")
    for (reason, tap), packets in sorted(present.drops.items(), key=lambda item: (item[0][1], item[0][0])):
        sys.stdout.write(f"{tap}: dropped {packets} ({reason.removeprefix('drops_')})\n")
    return 0


def _facts(present: Listing, tap: str) -> str:
    """What a guest is given, in words: mac=... ip=... profile=... uplink=..."""
    words = {"macs": "mac", "addr4": "ip", "addr6": "ip", "profiles": "profile", "paths": "uplink"}
    facts = []
    for element in present.elements:
        if element.interface == tap and element.name in words:
            # A profile is the name of a chain; of the others, the second part of the key is of interest.
            value = element.key[1] if len(element.key) > 1 else re.sub(r".*profile_(\w+).*", r"\1", str(element.value))
            facts.append(f"{words[element.name]}={value}")
    return " ".join(sorted(set(facts)))

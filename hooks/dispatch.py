# SPDX-License-Identifier: BSD-2-Clause
"""Which reactions follow which event. For every entry here there is a hook file in debian/; a test compares them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from ganeti_plugin import __version__, log
from ganeti_plugin.contract.hook import HookCall, Phase
from hooks import conversion, disk_grow, nic_cleanup, store_check

#: Given the event; None when it is the watcher.
Reaction = Callable[[HookCall | None], None]

REACTIONS: Mapping[tuple[str, Phase], tuple[Reaction, ...]] = {
    **{
        (f"instance-{operation}", Phase.POST): (nic_cleanup.react,)
        for operation in ("stop", "remove", "failover", "migrate", "reboot", "modify")
    },
    ("instance-modify", Phase.PRE): (conversion.react,),
    ("disk-grow", Phase.POST): (disk_grow.react,),
    ("cluster-verify", Phase.POST): (store_check.react,),
}

#: The watcher starts its hooks on every node, at each run, with no variables of its own.
WATCHER: tuple[Reaction, ...] = (nic_cleanup.react,)


def main(arguments: Sequence[str] | None = None) -> int:
    """React to the event that the environment (or the argument "watcher") names. An event without reaction is fine."""
    parser = argparse.ArgumentParser(
        prog="ganeti-hook",
        description="Reacts to an event of Ganeti, which starts it through /etc/ganeti/hooks. The environment says "
        "which: GANETI_HOOKS_PATH and GANETI_HOOKS_PHASE.",
    )
    parser.add_argument("event", nargs="?", choices=["watcher"], help="the watcher's hooks have no environment")
    parser.add_argument("--version", action="version", version=f"ganeti-hook {__version__}")
    call = None if parser.parse_args(arguments).event == "watcher" else HookCall.from_environment()
    for reaction in WATCHER if call is None else _reactions(call):
        reaction(call)
    return 0


def _reactions(call: HookCall) -> tuple[Reaction, ...]:
    found = REACTIONS.get((call.path, call.phase), ())
    log.debug("%s-%s for %s: %d reactions", call.path, call.phase, call.target, len(found))
    return found

# SPDX-License-Identifier: BSD-2-Clause
"""Removes what a NIC left on the node when its instance stopped, moved or lost it.

Ganeti 3.0 has no "down" event for a NIC: the kernel removes the tap when QEMU ends, while rules, policy routes and
proxy entries that name it stay. A guest that switches itself off triggers no hook at all, so the watcher, every few
minutes on each node, does the same. What is to be removed follows from the taps that exist, not from the event.
"""

from __future__ import annotations

from ganeti_plugin import log
from ganeti_plugin.contract.hook import HookCall


def react(_call: HookCall | None) -> None:
    """Remove the state of vanished taps; harmless when there is none, and when called twice."""
    from network_scripts import cleanup

    log.debug("removing the state of vanished taps")
    cleanup.reap()

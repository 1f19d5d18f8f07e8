# SPDX-License-Identifier: BSD-2-Clause
"""Makes `gnt-cluster verify` say which stores are nearly full, can't be used or were mistaken, on every node.

Ganeti counts a failing hook as an error of the verification, and shows what it printed.
"""

from __future__ import annotations

from ganeti_plugin.contract.hook import HookCall
from ganeti_plugin.errors import StateError
from hooks import archipelago


class StoresError(StateError):
    template = "{complaints}"


def react(_call: HookCall | None) -> None:
    if not archipelago.is_installed():
        return
    from extstorage import apply, space, specs

    site = apply.site()
    found = [*space.complaints(apply.usages(site)), *specs.oddities(site.stores, site.default_store)]
    if found:
        raise StoresError(complaints="; ".join(found))

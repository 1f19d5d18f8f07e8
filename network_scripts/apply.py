# SPDX-License-Identifier: BSD-2-Clause
"""The firewall in the kernel: every change is one transaction of nft, so it happens altogether or not at all.

The program rather than its Python binding: starting it takes 3 ms, loading the binding and its library 9 ms.
"""

from __future__ import annotations

from collections.abc import Sequence

from ganeti_plugin import templates
from ganeti_plugin.errors import CommandError
from ganeti_plugin.run import run
from network_scripts import render
from network_scripts.render import Command, Listing

BASE = "nft-base.nft"


def load_base() -> None:
    """Load the base ruleset; what is known about guests stays."""
    flush = render.base(templates.find(BASE).read_text(encoding="utf-8"))
    text = templates.render(BASE, {"flush": flush})
    run(["nft", "-f", "-"], stdin=text.encode(), timeout=20)


def transact(commands: Sequence[Command]) -> None:
    """Apply the commands as one transaction. Raises CommandError when the kernel refused it: nothing has changed."""
    if commands:
        run(["nft", "-j", "-f", "-"], stdin=render.encode(commands), timeout=20)


def listing() -> Listing | None:
    """What the kernel holds of ours; None when the base ruleset is not loaded (completely)."""
    documents = []
    for family in render.FAMILIES:
        try:
            documents.append(run(["nft", "-j", "list", "table", family, render.TABLE], timeout=20).stdout)
        except CommandError:
            return None
    return render.decode(documents)

# SPDX-License-Identifier: BSD-2-Clause
"""archipelago volume: disks of instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extstorage.cli.group import Group
from extstorage.cli.items import add_listing, add_removal, add_showing

if TYPE_CHECKING:
    from extstorage.cli.group import Commands


def add(commands: Commands) -> None:
    group = Group(commands, "volume", "disks of instances")
    add_listing(group, "volume")
    add_showing(group, "volume", "info", "show a volume")
    add_removal(group, "volume", "remove a volume that no instance needs")

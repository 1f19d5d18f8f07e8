# SPDX-License-Identifier: BSD-2-Clause
"""archipelago snapshot: immutable states of volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extstorage.cli.group import Group, Options, argument
from extstorage.cli.items import add_listing, add_removal, add_showing, volumes
from extstorage.cli.place import here

if TYPE_CHECKING:
    from extstorage.cli.group import Commands


def add(commands: Commands) -> None:
    group = Group(commands, "snapshot", "immutable states of volumes")
    parser = group.add("create", "take a snapshot of a volume, also while it is in use", _create)
    argument(parser, "volume", "the volume, as 'archipelago volume list' shows it", volumes)
    parser.add_argument("name", help="the name of the snapshot; an instance is cloned with origin=NAME")
    add_listing(group, "snapshot")
    add_showing(group, "snapshot", "show", "show a snapshot")
    add_removal(group, "snapshot", "remove a snapshot; clones keep their data")


def _create(options: Options) -> None:
    from extstorage import apply
    from extstorage.names import check_name
    from extstorage.plan import SnapshotPlan

    volume, name = check_name(options.volume, "the volume name"), check_name(options.name, "the snapshot name")
    apply.snapshot(here(options), SnapshotPlan(volume, name, replace=False, store=options.store))
    print(f"{name}: snapshot of {volume} taken")

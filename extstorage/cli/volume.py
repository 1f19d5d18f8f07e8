# SPDX-License-Identifier: BSD-2-Clause
"""archipelago volume: disks of instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extstorage.cli.group import Group, Options, argument
from extstorage.cli.items import add_listing, add_removal, add_showing, volumes
from extstorage.cli.output import print_json

if TYPE_CHECKING:
    from extstorage.cli.group import Commands


def add(commands: Commands) -> None:
    group = Group(commands, "volume", "disks of instances")
    add_listing(group, "volume")
    add_showing(group, "volume", "info", "show a volume")
    _add_properties(group)
    add_removal(group, "volume", "remove a volume that no instance needs")


def _add_properties(group: Group) -> None:
    text = "show what is kept beside the image of a disk, for snf-image"
    parser = group.add("properties", text, _properties, json=True)
    argument(parser, "disk", "a volume, or the block device or NBD URI of an attached one", volumes)


def _properties(options: Options) -> None:
    from extstorage import apply
    from extstorage.properties import volume_of

    site = apply.site()
    found = dict(apply.properties(site, volume_of(site, options.disk)))
    if options.json:
        print_json(found)
        return
    for name, value in sorted(found.items()):
        print(f"{name}={value}")

# SPDX-License-Identifier: BSD-2-Clause
"""archipelago snapshot: immutable states of volumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from extstorage.cli.group import Group, Options, argument
from extstorage.cli.items import add_listing, add_removal, add_showing, snapshots, volumes
from extstorage.cli.output import Meter, print_json
from extstorage.cli.place import here
from extstorage.names import check_name

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
    parser = group.add("hash", "name a snapshot's or image's blocks by their content", _hash, json=True)
    argument(parser, "name", "the snapshot or image", snapshots)
    parser = group.add("export-pithos", "write a hashed snapshot or image as a file of Pithos", _export, json=True)
    argument(parser, "name", "the snapshot or image", snapshots)
    parser.add_argument("directory", type=Path, help="where the folders blocks and maps are, or are to be made")


def _create(options: Options) -> None:
    from extstorage import apply
    from extstorage.plan import SnapshotPlan

    volume, name = check_name(options.volume, "the volume name"), check_name(options.name, "the snapshot name")
    apply.snapshot(here(options), SnapshotPlan(volume, name, replace=False, store=options.store))
    print(f"{name}: snapshot of {volume} taken")


def _hash(options: Options) -> None:
    from extstorage import apply
    from extstorage.hashing import hash_snapshot

    site = here(options)
    meter = Meter(options.name, "hashed")
    with apply.using_store_of(site, check_name(options.name), options.store) as store:
        root = hash_snapshot(store, options.name, meter)
    meter.end()
    if options.json:
        print_json({"name": options.name, "hash": root.hex()})
    else:
        print(f"{options.name}: {root.hex()}")


def _export(options: Options) -> None:
    from extstorage import apply, identity
    from extstorage.pithos_export import export

    site = here(options)
    directory = options.directory.absolute()
    if not directory.exists():
        directory.mkdir()
        os.chown(directory, *identity.ids_of(site.user))
    meter = Meter(options.name, "exported")
    with apply.using_store_of(site, check_name(options.name), options.store) as store:
        made = export(store, options.name, directory, meter)
    meter.end()
    if options.json:
        print_json({"name": options.name, "map": made.name, "size": made.size, "origin": str(made)})
    else:
        print(f"{options.name}: {made}")

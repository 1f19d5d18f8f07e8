# SPDX-License-Identifier: BSD-2-Clause
"""archipelago snapshot: immutable states of volumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from extstorage.cli.group import Group, Options, argument
from extstorage.cli.items import add_listing, add_removal, add_showing, origins, volumes
from extstorage.cli.output import Meter, print_json
from extstorage.cli.place import here
from extstorage.names import check_name, check_new_name

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
    argument(parser, "name", "the snapshot or image", origins)
    parser = group.add("export-pithos", "write a hashed snapshot or image as a file of Pithos", _export, json=True)
    argument(parser, "name", "the snapshot or image", origins)
    parser.add_argument("directory", type=Path, help="where the folders blocks and maps are, or are to be made")


def _create(options: Options) -> None:
    from extstorage import apply
    from extstorage.plan import SnapshotPlan

    volume, name = check_name(options.volume, "the volume name"), check_new_name(options.name, "the snapshot name")
    apply.snapshot(here(options), SnapshotPlan(volume, name, replace=False, store=options.store))
    print(f"{name}: snapshot of {volume} taken")


def _hash(options: Options) -> None:
    from extstorage import apply
    from extstorage.hashing import hash_snapshot

    site = here(options)
    name = check_name(options.name)
    with apply.using_store_of(site, name, options.store) as store, Meter(name, "hashed") as meter:
        root = hash_snapshot(store, name, meter)
    if options.json:
        print_json({"name": options.name, "hash": root.hex()})
    else:
        print(f"{options.name}: {root.hex()}")


def _export(options: Options) -> None:
    from extstorage import apply, catalog, identity
    from extstorage.pithos_export import ExportError, export

    site = here(options)
    directory = options.directory.absolute()
    name = check_name(options.name)
    with apply.using_store_of(site, name, options.store) as store:
        catalog.item(store, name, "snapshot or image", "snapshot", "image")
    try:
        directory.mkdir()
        os.chown(directory, *identity.ids_of(site.user), follow_symlinks=False)
    except FileExistsError:
        if not directory.is_dir():
            raise ExportError(path=directory, reason="it is no directory", hint="name a directory") from None
    except OSError as error:
        raise ExportError(path=directory, reason=error.strerror) from None
    with apply.using_store_of(site, name, options.store) as store, Meter(name, "exported") as meter:
        made = export(store, name, directory, meter)
    if options.json:
        print_json({"name": options.name, "map": made.name, "size": made.size, "origin": str(made)})
    else:
        print(f"{options.name}: {made}")

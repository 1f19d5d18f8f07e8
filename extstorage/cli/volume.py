# SPDX-License-Identifier: BSD-2-Clause
"""archipelago volume: disks of instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extstorage.cli import sizes
from extstorage.cli.group import Group, Options, argument
from extstorage.cli.items import add_listing, add_removal, add_showing, origins, volumes
from extstorage.cli.output import human, print_json
from extstorage.cli.place import here, store_of
from extstorage.errors import AlreadyThereError, HeldError, UnreachableStoreError
from extstorage.names import check_name, check_new_name
from extstorage.plan import CreatePlan, GrowPlan
from ganeti_plugin.log import warning

if TYPE_CHECKING:
    from extstorage.cli.group import Commands
    from extstorage.servers import Site


def add(commands: Commands) -> None:
    group = Group(commands, "volume", "disks of instances")
    _add_changes(group)
    add_listing(group, "volume")
    add_showing(group, "volume", "info", "show a volume")
    _add_properties(group)
    add_removal(group, "volume", "remove a volume that no instance needs")


def _add_changes(group: Group) -> None:
    parser = group.add("create", "make an empty volume", _create)
    parser.add_argument("name")
    parser.add_argument("size", help=sizes.HELP)
    parser = group.add("clone", "make a volume that begins as a copy of a snapshot or image", _clone)
    argument(parser, "origin", "the snapshot or image", origins)
    parser.add_argument("name")
    parser.add_argument("--size", default="", help=f"{sizes.HELP} (default: that of the origin)")
    parser = group.add("grow", "make a volume larger, also while it is in use", _grow)
    argument(parser, "name", "the volume", volumes)
    parser.add_argument("size", help=f"the new size, {sizes.HELP}")
    parser = group.add("rename", "give a volume that is not attached another name", _rename)
    argument(parser, "name", "the volume", volumes)
    parser.add_argument("new", help="its new name")
    parser = group.add("holder", "tell who has a volume open, or had it last", _holder, json=True)
    argument(parser, "name", "the volume", volumes)


def _create(options: Options) -> None:
    name, size = check_new_name(options.name), sizes.parse(options.size)
    _make(here(options), CreatePlan(name, size, "", "", False, options.store))


def _clone(options: Options) -> None:
    from extstorage import apply

    site = here(options)
    with apply.using_store_of(site, check_name(options.origin), options.store) as store:
        size = sizes.parse(options.size) if options.size else store.read_heads(options.origin).size
    _make(site, CreatePlan(check_new_name(options.name), size, options.origin, "", False, options.store))


def _make(site: Site, plan: CreatePlan) -> None:
    from extstorage import apply

    found = ""
    try:
        found = apply.find(site, plan.volume, plan.store)
    except UnreachableStoreError as error:
        # It may be away for long. The store that is needed is asked once more.
        warning("%s, so whether it has a %r is not known", error, plan.volume)
    if found:
        raise AlreadyThereError(name=plan.volume, store=found, what="volume, snapshot or image")
    apply.create(site, plan)
    print(f"{plan.volume}: {human(plan.size)}" + (f", a clone of {plan.origin}" if plan.origin else ""))


def _grow(options: Options) -> None:
    from extstorage import apply

    size = sizes.parse(options.size)
    apply.grow(here(options), GrowPlan(check_name(options.name), size, options.store))
    print(f"{options.name}: {human(size)}")


def _rename(options: Options) -> None:
    from extstorage import apply, attached, gallery

    site = here(options)
    check_new_name(options.new, "the new name")
    found = store_of(site, options, options.name, "volume")
    if options.name in attached.names(site):
        raise HeldError(name=options.name, holder="this node")
    with apply.using_store(site, found) as store:
        gallery.rename(store, options.name, options.new, "volume")
    print(f"{options.new}: was {options.name}")


def _holder(options: Options) -> None:
    from extstorage import apply, catalog

    site = here(options)
    with apply.using_store(site, store_of(site, options, options.name, "volume")) as store:
        held, holder = catalog.holder(store, options.name)
    if options.json:
        print_json({"name": options.name, "held": held, "holder": holder._asdict() if holder else None})
    elif held:
        print(f"{options.name}: open, by {holder or 'an unknown holder'}")
    else:
        print(f"{options.name}: not open" + (f"; last by {holder}" if holder else ""))


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

# SPDX-License-Identifier: BSD-2-Clause
"""What images, snapshots and volumes have in common: they are listed, shown and removed."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from extstorage.cli.group import Group, Options, argument
from extstorage.cli.output import print_facts, print_json, print_rows
from extstorage.cli.place import here, store_of, stores_meant
from extstorage.errors import DoubtfulError, NoSuchVolumeError, UnreachableStoreError, why_unusable
from ganeti_plugin.errors import Error, StateError

if TYPE_CHECKING:
    from extstorage.catalog import Item
    from extstorage.servers import Site
    from extstorage.store import Store

COLUMNS: tuple[str, ...] = ("name", "size", "origin", "created")
_MORE_COLUMNS = {"image": ("shared",), "volume": ("instance",)}


#: Facts that people are told only if there is something to tell; programs always.
_UNUSUAL = ("cname", "metadata", "fault", "mode", "writer", "pid")


class IncompleteError(StateError):
    template = "not all {what} are listed, for a store can't be used"


class AttachedError(StateError):
    template = "the {kind} {name!r} is attached on this node, and an instance may be using it"
    hint = "if none is, 'archipelago {kind} remove --detach {name}' removes it all the same"


def names(kind: str, **known: object) -> list[str]:
    """For completion."""
    from extstorage.cli import completion

    return completion.names(kind, **known)


volumes = functools.partial(names, "volume")
snapshots = functools.partial(names, "snapshot")
images = functools.partial(names, "image")
everything = functools.partial(names, "")


def origins(**known: object) -> list[str]:
    """What can be cloned or hashed."""
    return snapshots(**known) + images(**known)


def add_listing(group: Group, kind: str) -> None:
    parser = group.add("list", f"list the {kind}s", functools.partial(_list, kind), json=True)
    parser.add_argument(
        "--used", action="store_true", help="also ask for the space that each occupies, which takes longer"
    )


def add_showing(group: Group, kind: str, name: str, text: str) -> None:
    parser = group.add(name, text, functools.partial(_show, kind), json=True)
    argument(parser, "name", f"the {kind}", functools.partial(names, kind))


def add_removal(group: Group, kind: str, text: str) -> None:
    parser = group.add("remove", text, functools.partial(_remove, kind))
    argument(parser, "name", f"the {kind}", functools.partial(names, kind))
    parser.add_argument("--detach", action="store_true", help="also if it is attached on this node, whoever uses it")


def _list(kind: str, options: Options) -> None:
    site = here(options)
    rows: list[Mapping[str, object]] = []
    failed = False
    for name in stores_meant(site, options):
        try:
            rows += _rows(site, name, kind, used=options.used)
        except Error as error:
            if options.store:
                raise
            failed = True
            print(f"warning: {UnreachableStoreError(name=name, reason=why_unusable(error))}", file=sys.stderr)
    if options.json:
        print_json(rows)
    else:
        columns = (*COLUMNS[:2], "used", *COLUMNS[2:]) if options.used else COLUMNS
        columns = (*columns, *_MORE_COLUMNS.get(kind, ()))
        shown = [{**row, "instance": _instance(row)} for row in rows]
        print_rows(columns if len(site.stores) == 1 else ("store", *columns), shown)
        for row in rows:
            if row.get("fault"):
                print(f"warning: {row['fault']}", file=sys.stderr)
    if failed:
        raise IncompleteError(what=f"{kind}s")


def _instance(row: Mapping[str, object]) -> str:
    """Ganeti notes `originstname+NAME`, the instance that a disk was made for."""
    return str(row["metadata"]).partition("originstname+")[2]


def _rows(site: Site, store_name: str, kind: str, *, used: bool) -> list[Mapping[str, object]]:
    from extstorage import apply, catalog

    with apply.using_store(site, store_name) as store:
        items = catalog.items(store, kind)
        found = store.each(lambda item: _used(store, item), items) if used else [{}] * len(items)
        return [{"store": store_name, **_row(item), **more} for item, more in zip(items, found, strict=True)]


def _show(kind: str, options: Options) -> None:
    from extstorage import apply, catalog

    site = here(options)
    store_name = store_of(site, options, options.name, kind)
    with apply.using_store(site, store_name) as store:
        item = catalog.item(store, options.name, kind, kind)
        row = {"store": store_name, **_row(item), **_used(store, item)}
        if kind != "volume":
            row |= _hash(store, options.name)
        elif not item.fault and (loss := store.loss(item.name)):
            row["fault"] = str(DoubtfulError(name=item.name, reason=loss))
    row |= _attachment(site, options.name)
    if options.json:
        print_json(row)
    else:
        hidden = [key for key in _UNUSUAL if not row[key]] + ([] if kind == "image" else ["shared"])
        print_facts({key: value for key, value in row.items() if key not in hidden})


def _hash(store: Store, name: str) -> Mapping[str, object]:
    from extstorage.content import root_of_map

    root = None if store.read_heads(name).sources else root_of_map(store.read_map(name))
    return {"hash": root.hex() if root else ""}


def _attachment(site: Site, name: str) -> Mapping[str, object]:
    """What the volume's server on this node says."""
    from extstorage import attached, servers

    if not servers.is_running(site, name):
        return {"attached": False, "mode": "", "writer": False, "pid": 0}
    found = attached.look(site, name)
    told = {"attached": True, "mode": found.mode, "writer": found.writer, "pid": found.pid}
    return {**told, "fault": found.fault} if found.fault else told


def _remove(kind: str, options: Options) -> None:
    from extstorage import apply, attached

    site = here(options)
    store_name = store_of(site, options, options.name, kind)
    if not options.detach and options.name in attached.names(site):
        raise AttachedError(kind=kind, name=options.name)
    with apply.using_store(site, store_name) as store:
        _give_up_intake(store, options.name)
    apply.remove(site, options.name, store_name)
    print(f"{options.name}: {kind} removed")


def _give_up_intake(store: Store, name: str) -> None:
    """What an interrupted import or hashing left is two maps, and a person has heard of one."""
    from extstorage import hashing, images, intake

    if name.startswith((images.PREFIX, hashing.PREFIX)):
        intake.clear(store, name)


def _used(store: Store, item: Item) -> Mapping[str, object]:
    from extstorage import catalog

    with contextlib.suppress(NoSuchVolumeError):
        return {"used": 0 if item.fault else catalog.used(store, item.name)}
    return {"used": 0}


def _row(item: Item) -> Mapping[str, object]:
    """One thing for a listing or for JSON, whose keys are always the same; sizes in bytes."""
    facts = item.facts
    return {
        "name": item.name,
        "kind": item.kind,
        "size": item.size,
        "origin": facts.origin,
        "created": facts.created,
        "properties": dict(facts.properties),
        "cname": facts.cname,
        "metadata": facts.metadata,
        "shared": facts.shared,
        "fault": item.fault,
    }

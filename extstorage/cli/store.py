# SPDX-License-Identifier: BSD-2-Clause
"""archipelago store: the places where volumes live, as the configuration names them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from extstorage.cli.group import Group, Options, argument
from extstorage.cli.output import print_json, print_rows
from extstorage.errors import UnreachableStoreError
from ganeti_plugin.errors import StateError

if TYPE_CHECKING:
    from extstorage.cli.group import Commands
    from extstorage.servers import Site
    from extstorage.space import Usage


class UnusableStoresError(StateError):
    template = "the stores {names} can't be used"


def add(commands: Commands) -> None:
    group = Group(commands, "store", "where volumes live")
    parser = group.add("create", "make the empty store that the configuration names", _create, in_store=False)
    argument(parser, "name", "the store, as the setting archipelago.stores names it", _names)
    group.add("list", "list the stores and how full they are", _list, json=True, in_store=False)


def _names(**_known: object) -> list[str]:
    from extstorage.cli import completion

    return completion.stores()


def _create(options: Options) -> None:
    from extstorage import apply, specs, stores

    site = apply.site()
    stores.prepare(specs.spec_of(site.stores, options.name), site.user)
    with apply.using_store(site, options.name, make=True) as store:
        print(f"{options.name}: {store.title} is a store")


def _list(options: Options) -> None:
    from extstorage import apply, specs

    site = apply.site()
    usages = apply.usages(site)
    rows = [_row(site, usage) for usage in usages]
    if options.json:
        print_json(rows)
    else:
        print_rows(("name", "default", "size", "free", "full", "place"), rows)
    for sentence in specs.oddities(site.stores, site.default_store):
        print(f"warning: {sentence}", file=sys.stderr)
    faults = [UnreachableStoreError(name=usage.name, reason=usage.fault) for usage in usages if usage.fault]
    if len(faults) > 1:
        for fault in faults:
            print(f"warning: {fault}", file=sys.stderr)
        raise UnusableStoresError(names=", ".join(str(fault.name) for fault in faults))
    if faults:
        raise faults[0]


def _row(site: Site, usage: Usage) -> dict[str, object]:
    known = usage.space if usage.space and usage.space.is_known else None
    return {
        "name": usage.name,
        "default": usage.name == site.default_store,
        "place": site.stores[usage.name],
        "size": known.total if known else None,
        "free": known.free if known else None,
        "full": usage.percent if known else None,
        "fault": usage.fault,
    }

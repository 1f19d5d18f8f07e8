# SPDX-License-Identifier: BSD-2-Clause
"""Where a command does its work: this node, and the store that was named or that has the thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extstorage.cli.group import Options

if TYPE_CHECKING:
    from extstorage.servers import Site


def here(options: Options) -> Site:
    """This node; a store that was named is its default. Raises NoSuchStoreError."""
    from extstorage import apply, specs

    site = apply.site()
    if not options.store:
        return site
    specs.spec_of(site.stores, options.store)
    return site._replace(default_store=options.store)


def only_there(options: Options) -> Site:
    """The same, for what would look everywhere: a store that was named is the only one."""
    site = here(options)
    return site._replace(stores={name: site.stores[name] for name in stores_meant(site, options)})


def stores_meant(site: Site, options: Options) -> list[str]:
    """The store that was named, or all."""
    return [options.store] if options.store else list(site.stores)


def store_of(site: Site, options: Options, name: str, kind: str) -> str:
    """The name of the store that has this image, snapshot or volume; raises NoSuchVolumeError."""
    from extstorage import apply, catalog
    from extstorage.errors import NoSuchVolumeError
    from extstorage.names import check_name

    found: str = options.store or apply.find(site, check_name(name))
    if not found:
        raise NoSuchVolumeError(what=kind, name=name, store=" or ".join(site.stores))
    with apply.using_store(site, found) as store:
        catalog.item(store, name, kind, kind)
    return found

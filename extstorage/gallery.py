# SPDX-License-Identifier: BSD-2-Clause
"""What an image is called, and whether it is there for everybody.

Ganeti tells the provider of no user or tenant. So an image is for every instance, which is the default, or for none:
one that is withdrawn keeps its clones, its name and its data, and no new disk can be made of it.
"""

from __future__ import annotations

from extstorage import catalog
from extstorage.errors import AlreadyThereError
from extstorage.names import check_name
from extstorage.store import Store
from ganeti_plugin.log import info


def rename(store: Store, old: str, new: str, kind: str = "image") -> None:
    """Clones are not affected; they remember the old name as their origin. Raises HeldError while it is attached."""
    check_name(new, "the new name")
    catalog.item(store, old, kind, kind)
    with catalog.held(store, old), store.locked():
        if store.exists(new):
            other = catalog.item(store, new, "image", *catalog.KINDS).kind
            raise AlreadyThereError(name=new, store=store.title, what=other)
        store.rename(old, new)
    info("%s: renamed, was %s", new, old)


def share(store: Store, name: str, *, shared: bool) -> None:
    with store.locked():
        facts = catalog.item(store, name, "image", "image").facts
        store.write_info(name, facts._replace(shared=shared))
    info("%s: %s", name, "shared" if shared else "withdrawn")

# SPDX-License-Identifier: BSD-2-Clause
"""Opening the stores that the configuration names; what one kind of store needs is imported when it is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from extstorage.errors import CantMakeStoreError
from extstorage.identity import ids_of
from extstorage.specs import FilesSpec, RadosSpec, Spec
from extstorage.store import Store

#: The directory that the package makes for the store of the default configuration.
HOME = Path("/var/lib/snf-archipelago/store")

#: In each attached volume's directory under /run: the name of the store that it is in.
STORE_FILE = "store"

#: Seconds: a script of Ganeti's may take 900, and a person at a terminal gives up long before.
DEADLINE = 60.0


def prepare(spec: Spec, user: str) -> None:
    """Have a directory for a store to be made in, which belongs to the store's user. Needs root."""
    if isinstance(spec, FilesSpec) and not spec.directory.exists():
        spec.directory.mkdir(mode=0o750, parents=True)
        os.chown(spec.directory, *ids_of(user))


def open_store(
    spec: Spec, make: bool = False, *, deadline: float = DEADLINE, pithos: Mapping[str, str] | None = None
) -> Store:
    """Open a store; with `make`, an empty one is made where there is none. Raises BadStoreError when it can't be.

    `deadline`: seconds for one operation of a store in a network; 0 waits for it as a guest waits for its disk.
    `pithos`: the table of Pithos stores, for blocks that this one does not have.

    The package's own directory needs no `make`: its store is made when it is first used. Elsewhere an empty directory
    may be the place where a file system is not mounted, and volumes that are only out of sight must not seem removed.
    """
    store = _opened(spec, make, deadline)
    if pithos:
        from extstorage.pithos import Pithos

        store.foreign = Pithos(pithos).layer
    return store


def asks_the_network(pithos: Mapping[str, str]) -> bool:
    """Whether one of the Pithos stores is not in this node's file systems."""
    return any(text.startswith("rados:") for text in pithos.values())


def _opened(spec: Spec, make: bool, deadline: float) -> Store:
    if isinstance(spec, RadosSpec):
        from extstorage import rados_store

        if make:
            return rados_store.create_store(spec, deadline=deadline)
        return rados_store.open_store(spec, deadline=deadline)
    from extstorage import files_store

    if make or (spec.directory == HOME and _is_missing(HOME / files_store.STORE_FILE)):
        try:
            return files_store.create_store(spec.directory)
        except OSError as error:
            raise CantMakeStoreError(path=spec.directory, reason=error.strerror) from None
    return files_store.open_store(spec.directory)


def _is_missing(path: Path) -> bool:
    """Not so where nobody knows: opening it says why."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False

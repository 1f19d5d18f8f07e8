# SPDX-License-Identifier: BSD-2-Clause
"""What every store must do, over a store in a real Ceph: the tests of sessions, content, collection and threads."""

from __future__ import annotations

import inspect

import pytest

from extstorage import catalog
from extstorage.names import BLOCK
from extstorage.rados_store import RadosStore
from tests.unit.extstorage import (
    test_catalog,
    test_contents,
    test_gc,
    test_migration,
    test_session,
    test_snapshots,
    test_threads,
)

#: Of a volume that is there.
SESSIONS = (test_session, test_migration, test_snapshots, test_catalog)

EXCLUDED = (
    "test_a_server_that_was_taken_over_stops",  # test_rados_locks.py does it with two clients
)

for module in (*SESSIONS, test_contents, test_gc, test_threads):
    for name, found in vars(module).items():
        if name.startswith("test_") and name not in EXCLUDED and "store" in inspect.signature(found).parameters:
            globals()[name.replace("test_", f"{module.__name__.rpartition('.')[2]}_", 1)] = found


@pytest.fixture
def store(request: pytest.FixtureRequest, rados_store: RadosStore) -> RadosStore:
    if any(request.function.__module__ == module.__name__ for module in SESSIONS):
        catalog.create_volume(rados_store, "vol", 3 * BLOCK)
    return rados_store

# SPDX-License-Identifier: BSD-2-Clause
"""The tests of sessions, over a store in a real Ceph."""

from __future__ import annotations

import inspect

import pytest

from extstorage import catalog
from extstorage.names import BLOCK
from extstorage.rados_store import RadosStore
from extstorage.store import Store
from tests.unit.extstorage import test_session

EXCLUDED = (
    "test_a_server_that_was_taken_over_stops",  # test_rados_locks.py does it with two clients
)

globals().update(
    {
        name: test
        for name, test in vars(test_session).items()
        if name.startswith("test_") and name not in EXCLUDED and "store" in inspect.signature(test).parameters
    }
)


@pytest.fixture
def store(rados_store: RadosStore) -> Store:
    catalog.create_volume(rados_store, "vol", 3 * BLOCK)
    return rados_store

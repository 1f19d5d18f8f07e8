# SPDX-License-Identifier: BSD-2-Clause
"""A volume of twelve megabytes, `vol`, in a store of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from extstorage import catalog
from extstorage.files_store import create_store
from extstorage.names import BLOCK
from extstorage.store import Store
from tests.datapath.memory_store import MemoryStore


@pytest.fixture(params=["files", "memory", "atomic"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    memory = MemoryStore(atomic=request.param == "atomic")
    found: Store = create_store(tmp_path / "store") if request.param == "files" else memory
    catalog.create_volume(found, "vol", 3 * BLOCK)
    return found

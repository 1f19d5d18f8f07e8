# SPDX-License-Identifier: BSD-2-Clause
"""A Ceph for the tests that want one: started at first use (5 s), ended with the run."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extstorage import stores
from extstorage.rados_store import RadosStore, create_store
from extstorage.stores import RadosSpec
from tests.real.extstorage.ceph import Ceph

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """Its files are where servers with a /tmp of their own find them, too."""
    directory = Path(tempfile.mkdtemp(prefix="test-ceph-", dir="/run"))
    cluster = Ceph(directory)
    yield cluster
    cluster.stop()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def new_spec(ceph: Ceph) -> Callable[..., RadosSpec]:
    """Makes a place that no test used before."""

    def make(**more: str) -> RadosSpec:
        spec = stores.parse(ceph.spec(f"t{next(_numbers)}", **more))
        assert isinstance(spec, RadosSpec)
        return spec

    return make


@pytest.fixture
def rados_store(new_spec: Callable[..., RadosSpec]) -> Iterator[RadosStore]:
    store = create_store(new_spec(lease="2"))
    yield store
    store.close()

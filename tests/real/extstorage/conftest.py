# SPDX-License-Identifier: BSD-2-Clause
"""What tests of volumes begin with: one in use, and a Ceph, started at first use (5 s) and ended with the run."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extstorage import specs
from extstorage.rados_store import RadosStore, create_store
from extstorage.specs import RadosSpec
from tests.real.extstorage.ceph import Ceph
from tests.real.extstorage.provider import do, new_name, traces

_numbers = itertools.count(1)


@pytest.fixture
def volume() -> Iterator[str]:
    """64 MiB in the default store, attached and open for writing."""
    name = new_name()
    do("create", name, VOL_SIZE="64")
    do("attach", name)
    do("open", name, VOL_OPEN_EXCLUSIVE="True")
    yield name
    do("detach", name)
    do("remove", name)
    assert traces(name) == []


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
        spec = specs.parse(ceph.spec(f"t{next(_numbers)}", **more))
        assert isinstance(spec, RadosSpec)
        return spec

    return make


@pytest.fixture
def rados_store(new_spec: Callable[..., RadosSpec]) -> Iterator[RadosStore]:
    store = create_store(new_spec(lease="2"))
    yield store
    store.close()

# SPDX-License-Identifier: BSD-2-Clause
"""Two nodes with two stores, a small image and the network 'public', for the tests that need nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.place import IMAGE, IMAGE_FILE, NETWORK, NODES
from tests.place import ROOT, TESTBED, done, host, is_fit, tried

#: On each node: a directory that both have, and Ceph. A short lease, so that tests need not wait for it long.
SETTINGS = """
install -d -o snf-archipelago -g snf-archipelago -m 750 /srv/shared/store
cat > /etc/snf-ganeti/conf.d/stores.toml <<END
[archipelago]
stores = { main = "files:/srv/shared/store", ceph = "rados:snf-archipelago?lease=3" }
END
"""


@pytest.fixture(scope="session")
def node1() -> Iterator[str]:
    """The name of a node that is ready for `gnt-instance add`. A testbed that is up and fits is used and left up."""
    was_up = is_fit(*NODES)
    built = host(ROOT / "tests/guest/build-image", "--small", timeout=1500)
    assert built.status == 0, built.said
    if not was_up:
        started = host(TESTBED, "up", "--nodes", "2", "--tools", "--ceph", timeout=1500)
        assert started.status == 0, started.said
    try:
        prepare()
        yield "node1"
    finally:
        if not was_up:
            host(TESTBED, "down", timeout=300)


def prepare() -> None:
    """The stores that both nodes see, image and network, unless they are there."""
    for node in NODES:
        done("sh", "-ec", SETTINGS, place=node)
    for store in ("main", "ceph"):
        if IMAGE not in tried("archipelago", "image", "list", "--store", store).stdout.split():
            done("archipelago", "store", "create", store)
            done("archipelago", "image", "import", IMAGE, IMAGE_FILE, "--format", "raw", "--store", store)
    # A store's first collection leaves a lock file, which is nobody's trace.
    done("archipelago", "gc")
    if "public" not in tried("gnt-network", "list", "--no-headers", "-o", "name").stdout:
        done(*NETWORK)
        done("gnt-network", "connect", "--nic-parameters", "mode=routed,link=100", "public")

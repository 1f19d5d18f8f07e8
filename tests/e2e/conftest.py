# SPDX-License-Identifier: BSD-2-Clause
"""Two nodes with one store, a small image and the network 'public', for the tests that need nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.place import IMAGE, IMAGE_FILE, NETWORK, NODES, ROOT, TESTBED, done, host, is_up, tried

SHARE_STORE = """
install -d -o snf-archipelago -g snf-archipelago -m 750 /srv/shared/store
printf '[archipelago]\\nstore_directory = "/srv/shared/store"\\n' > /etc/snf-ganeti/conf.d/stores.toml
"""


@pytest.fixture(scope="session")
def node1() -> Iterator[str]:
    """The name of a node that is ready for `gnt-instance add`. A testbed that is already up is used and left up."""
    was_up = is_up()
    built = host(ROOT / "tests/guest/build-image", "--small", timeout=1500)
    assert built.status == 0, built.said
    if not was_up:
        started = host(TESTBED, "up", "--nodes", "2", "--tools", timeout=1500)
        assert started.status == 0, started.said
    try:
        prepare()
        yield "node1"
    finally:
        if not was_up:
            host(TESTBED, "down", timeout=300)


def prepare() -> None:
    """The store that both nodes see, image and network, unless they are there."""
    for node in NODES:
        done("sh", "-ec", SHARE_STORE, place=node)
    if IMAGE not in tried("archipelago", "image", "list").stdout.split():
        done("archipelago", "image", "import", IMAGE, IMAGE_FILE, "--format", "raw")
    if "public" not in tried("gnt-network", "list", "--no-headers", "-o", "name").stdout:
        done(*NETWORK)
        done("gnt-network", "connect", "--nic-parameters", "mode=routed,link=100", "public")

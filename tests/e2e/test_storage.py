# SPDX-License-Identifier: BSD-2-Clause
"""A guest that writes all the time, on a store that two nodes share: it moves, its server, its QEMU and its node die.

Whatever was said to be durable must be there. The tests follow each other: one guest lives through most of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.guest import MIB, Guest, Writer, parameters
from tests.e2e.place import IMAGE, done, tried

pytestmark = pytest.mark.timeout(900)

NAME = "store1.test"
DATA = "/dev/vdb"


@pytest.fixture(scope="module")
def guest(node1: str) -> Iterator[Guest]:
    """It has a system disk and an empty one of 1 GiB."""
    done(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext"),
        *("--disk", f"0:size=128M,provider=archipelago,origin={IMAGE}", "--disk", "1:size=1G,provider=archipelago"),
        *("-o", "snf-image+default", "-O", parameters(), "--net", "0:ip=pool,network=public"),
        *("-B", "minmem=128M,maxmem=128M,vcpus=1", "--no-name-check", "--no-ip-check"),
        *("--tags", "synnefo:network:0:unprotected", NAME),
    )
    yield Guest(NAME)
    tried("gnt-instance", "remove", "-f", "--ignore-failures", "--shutdown-timeout=0", NAME)


class Load:
    """Small blocks and large ones, at once."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.writers = (
            Writer(guest, DATA, first=0, size=4096, slots=2048),
            Writer(guest, DATA, first=512 * MIB, size=256 << 10, slots=64),
        )

    def start(self) -> None:
        for writer in self.writers:
            writer.start()

    def progress(self) -> None:
        for writer in self.writers:
            writer.progress()

    def stop(self) -> None:
        for writer in self.writers:
            writer.stop()

    def check(self) -> None:
        for writer in self.writers:
            writer.check(self.guest.volume(1), self.guest.node)


@pytest.fixture(scope="module")
def load(guest: Guest) -> Iterator[Load]:
    load = Load(guest)
    assert int(guest.ask("cat /sys/block/vdb/size")) == 2 << 20
    load.start()
    yield load
    for writer in load.writers:
        writer.abandon()


def test_migrations_lose_no_write(guest: Guest, load: Load) -> None:
    for target in ("node2", "node1", "node2"):
        done("gnt-instance", "migrate", "-f", NAME)
        assert guest.node == target
        load.progress()
        load.check()

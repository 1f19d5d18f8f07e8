# SPDX-License-Identifier: BSD-2-Clause
"""Servers of volumes in RADOS under a client that goes on: they are killed, their cluster stands still."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from extstorage import gc, specs
from extstorage.rados_store import RadosStore, open_store
from extstorage.specs import RadosSpec
from tests.real.extstorage.ceph import Ceph
from tests.real.extstorage.fio import Load
from tests.real.extstorage.provider import Client, command, do, eventually, kill_server, new_name, qemu_io, server_pid

#: Before the fixture `volume`, which makes one in the default store.
pytestmark = pytest.mark.usefixtures("store")

CONFIGURATION = Path("/etc/snf-ganeti/conf.d/test-rados.toml")

#: What an empty store has.
USUAL = {"store", "store.lock", "names", "bodies", "layers", "only.gc"}


@pytest.fixture
def store(ceph: Ceph, request: pytest.FixtureRequest) -> Iterator[RadosStore]:
    """The default store of this node's configuration."""
    spec = ceph.spec(request.node.name, lease="3")
    CONFIGURATION.parent.mkdir(parents=True, exist_ok=True)
    CONFIGURATION.write_text(f'[archipelago]\nstores = {{ ceph = "{spec}" }}\ndefault_store = "ceph"\n')
    made = command("store", "create", "ceph")
    assert made.returncode == 0, made.stderr
    parsed = specs.parse(spec)
    assert isinstance(parsed, RadosSpec)
    store = open_store(parsed)
    yield store
    gc.collect(store)
    assert set(store._objects.keys()) - USUAL == set()
    store.close()
    CONFIGURATION.unlink()


def test_a_killed_server_is_followed_by_another(volume: str) -> None:
    """What was acknowledged and not flushed is there: it was in the cluster before it was acknowledged."""
    client = Client(volume, "write -P 9 60M 64k")
    numbers = range(1, 4)
    for number in numbers:
        writes = [f"write -P {number} {number * 8 + part}M 1M" for part in range(8)]
        client.say(*writes[:4])
        kill_server(volume)
        client.say(*writes[4:])
        eventually(lambda: server_pid(volume) != 0)
    client.finish(*(f"read -P {number} {number * 8}M 8M" for number in numbers))
    qemu_io(volume, *(f"read -P {number} {number * 8}M 8M" for number in numbers))


def test_what_fio_wrote_is_there_while_servers_die_and_are_restarted(volume: str) -> None:
    """Over a block device. The same on files is in kernel_script.py."""
    load = Load(do("attach", volume, EXTP_ACCESS="kernelspace").splitlines()[0], rate=400)
    for _ in range(2):
        time.sleep(0.5)
        kill_server(volume)
        eventually(lambda: server_pid(volume) != 0)
        time.sleep(0.5)
        done = command("server", "restart", "--all")
        assert done.returncode == 0, done.stderr
    load.worst()


def test_a_cluster_that_stands_still_holds_its_clients_up_and_harms_nobody(ceph: Ceph, volume: str) -> None:
    client = Client(volume, "write -P 1 0 1M")
    ceph.suspend()
    try:
        client.say("write -P 2 1M 1M", "discard 4M 1M", "write -P 3 8M 4M")
        time.sleep(5)  # longer than the lease
    finally:
        ceph.go_on()
    client.finish("read -P 1 0 1M", "read -P 2 1M 1M", "read -P 3 8M 4M", "write -P 4 16M 64k", "flush")
    qemu_io(volume, "read -P 4 16M 64k", "write -P 5 0 64k")


def test_a_snapshot_of_a_volume_in_use_and_its_clone(volume: str) -> None:
    qemu_io(volume, "write -P 1 0 1M", "discard 64k 64k")
    do("snapshot", volume, VOL_SNAPSHOT_NAME="golden", VOL_SNAPSHOT_SIZE="64")
    qemu_io(volume, "write -P 2 0 1M")
    clone = new_name()
    do("create", clone, VOL_SIZE="128", EXTP_ORIGIN="golden")
    do("attach", clone)
    qemu_io(clone, "read -P 1 0 64k", "read -P 0 64k 64k", "read -P 1 128k 64k", "read -P 0 64M 1M", "write -P 3 0 4k")
    qemu_io(volume, "read -P 2 0 1M")
    do("grow", clone, VOL_SIZE="128", VOL_NEW_SIZE="160")
    do("detach", clone)
    do("remove", clone)
    do("remove", "golden")

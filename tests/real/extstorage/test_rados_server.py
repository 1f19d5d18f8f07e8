# SPDX-License-Identifier: BSD-2-Clause
"""Servers of volumes in RADOS under a client that goes on: they are killed, their cluster stands still."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from extstorage import gc, stores
from extstorage.rados_store import RadosStore, open_store
from extstorage.stores import RadosSpec
from tests.real.extstorage.ceph import Ceph
from tests.real.extstorage.provider import RUN, command, do, eventually, kill_server, new_name, qemu_io, server_pid

CONFIGURATION = Path("/etc/snf-ganeti/conf.d/test-rados.toml")

#: What an empty store has.
USUAL = {"store", "store.lock", "names", "layers", "only.gc"}


@pytest.fixture
def store(ceph: Ceph, request: pytest.FixtureRequest) -> Iterator[RadosStore]:
    """The default store of this node's configuration."""
    spec = ceph.spec(request.node.name, lease="3")
    CONFIGURATION.parent.mkdir(parents=True, exist_ok=True)
    CONFIGURATION.write_text(f'[archipelago]\nstores = {{ ceph = "{spec}" }}\ndefault_store = "ceph"\n')
    made = command("store", "create", "ceph")
    assert made.returncode == 0, made.stderr
    parsed = stores.parse(spec)
    assert isinstance(parsed, RadosSpec)
    store = open_store(parsed)
    yield store
    store.close()
    CONFIGURATION.unlink()


@pytest.fixture
def volume(store: RadosStore) -> Iterator[str]:
    name = new_name()
    do("create", name, VOL_SIZE="64")
    do("attach", name)
    do("open", name, VOL_OPEN_EXCLUSIVE="True")
    yield name
    do("detach", name)
    do("remove", name)
    assert not (RUN / name).exists()
    gc.collect(store)
    assert set(store._objects.keys()) - USUAL == set()


class Client:
    """A qemu-io that reconnects, as a guest's QEMU does."""

    def __init__(self, volume: str) -> None:
        place = f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={RUN / volume / 'nbd.sock'}"
        self._process = subprocess.Popen(
            ["qemu-io", "--image-opts", f"{place},file.reconnect-delay=60"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.say("write -P 9 60M 64k")
        eventually(lambda: '"written_bytes": 65536' in command("server", "list", "--json").stdout)

    def say(self, *commands: str) -> None:
        assert self._process.stdin
        for one in commands:
            self._process.stdin.write(f"{one}\n")
        self._process.stdin.flush()

    def finish(self, *commands: str) -> None:
        output, _ = self._process.communicate("".join(f"{one}\n" for one in (*commands, "quit")), timeout=60)
        assert self._process.returncode == 0, output
        assert "failed" not in output.lower(), output


def test_a_killed_server_is_followed_by_another(volume: str) -> None:
    """What was acknowledged and not flushed is there: it was in the cluster before it was acknowledged."""
    client = Client(volume)
    numbers = range(1, 4)
    for number in numbers:
        writes = [f"write -P {number} {number * 8 + part}M 1M" for part in range(8)]
        client.say(*writes[:4])
        kill_server(volume)
        client.say(*writes[4:])
        eventually(lambda: server_pid(volume) != 0)
    client.finish(*(f"read -P {number} {number * 8}M 8M" for number in numbers))
    qemu_io(volume, *(f"read -P {number} {number * 8}M 8M" for number in numbers))


def test_a_cluster_that_stands_still_holds_its_clients_up_and_harms_nobody(ceph: Ceph, volume: str) -> None:
    client = Client(volume)
    client.say("write -P 1 0 1M")
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

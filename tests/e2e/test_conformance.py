# SPDX-License-Identifier: BSD-2-Clause
"""The life of one instance by plain Ganeti commands: each does what its manual says, and at the end nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.place import IMAGE, Traces, assert_nothing_left
from tests.place import done, eventually, tried

pytestmark = pytest.mark.timeout(900)

NAME = "conform1.test"
PROBE = (
    "import socket,sys; s=socket.create_connection((sys.argv[1], 7), 3); s.settimeout(3); print(s.recv(99).decode())"
)


@pytest.fixture(scope="module")
def traces(node1: str) -> Traces:
    return Traces.look(node1)


@pytest.fixture(scope="module")
def address(traces: Traces) -> Iterator[str]:
    """The instance's IPv4 address; it exists for all tests of this module but the last."""
    done(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext"),
        *("--disk", f"0:size=1G,provider=archipelago,origin={IMAGE}"),
        *("-o", "snf-image+default", "-O", "img_id=null,img_format=diskdump", "--net", "0:ip=pool,network=public"),
        *("-B", "minmem=128M,maxmem=128M,vcpus=1", "--no-name-check", "--no-ip-check"),
        *("--tags", "synnefo:network:0:unprotected", NAME),
    )
    yield done("gnt-instance", "list", "--no-headers", "-o", "nic.ips", NAME).strip("[]'")
    tried("gnt-instance", "remove", "-f", "--ignore-failures", "--shutdown-timeout=1", NAME)


def answers(address: str) -> bool:
    """Whether the guest says its name to whoever connects."""
    probe = tried("/usr/bin/python3", "-c", PROBE, address, place="outside", timeout=30)
    return probe.stdout.strip() == NAME


def state() -> str:
    return done("gnt-instance", "list", "--no-headers", "-o", "status", NAME)


def sizes() -> str:
    return done("gnt-instance", "list", "--no-headers", "--units=m", "-o", "disk.sizes", NAME)


def test_add_gives_a_running_guest_with_its_own_name(address: str) -> None:
    assert state() == "running"
    eventually("answer of the guest", lambda: answers(address), seconds=90)


def test_stop_and_start(address: str) -> None:
    done("gnt-instance", "stop", NAME)
    assert state() == "ADMIN_down"
    assert not Traces.look().processes, "a stopped instance needs no server and no QEMU"
    done("gnt-instance", "start", NAME)
    eventually("answer after start", lambda: answers(address), seconds=90)


@pytest.mark.parametrize("kind", ["soft", "hard", "full"])
def test_reboot(address: str, kind: str) -> None:
    done("gnt-instance", "reboot", "-t", kind, "--shutdown-timeout=20", NAME)
    assert state() == "running"
    eventually(f"answer after a {kind} reboot", lambda: answers(address), seconds=90)


def test_grow(address: str) -> None:
    done("gnt-instance", "grow-disk", NAME, "0", "512M")
    assert sizes() == "1536"
    eventually("answer after grow", lambda: answers(address), seconds=30)


def test_add_and_remove_a_disk(address: str) -> None:
    done("gnt-instance", "modify", "--hotplug", "--disk", "add:size=1G,provider=archipelago", NAME)
    assert sizes() == "1536,1024"
    done("gnt-instance", "modify", "--hotplug", "--disk", "remove", NAME)
    assert sizes() == "1536"
    eventually("answer after modify", lambda: answers(address), seconds=30)


def test_export_a_running_instance(address: str) -> None:
    done("gnt-backup", "export", "-n", "node1.testbed", "--shutdown-timeout=20", NAME)
    assert NAME in done("gnt-backup", "list", "--no-headers")
    assert state() == "running"
    done("gnt-backup", "remove", NAME)
    eventually("answer after export", lambda: answers(address), seconds=90)


def test_reinstall(address: str) -> None:
    done("gnt-instance", "stop", NAME)
    done("gnt-instance", "reinstall", "-f", "-O", "img_id=null,img_format=diskdump", NAME)
    done("gnt-instance", "start", NAME)
    eventually("answer after reinstall", lambda: answers(address), seconds=90)


def test_verify_is_clean(address: str) -> None:
    done("gnt-cluster", "verify")


def test_remove_leaves_nothing(address: str, traces: Traces) -> None:
    done("gnt-instance", "remove", "-f", "--shutdown-timeout=20", NAME)
    # What the export's snapshot had shared with the disk is for the collection, which else comes once a day.
    done("archipelago", "gc")
    assert_nothing_left(traces)

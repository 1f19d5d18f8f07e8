# SPDX-License-Identifier: BSD-2-Clause
"""The testbed itself: several nodes, the other release, and nothing left behind, whatever ends it.

Most run in a slot of their own, beside a testbed that others may be using.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ganeti_plugin.files import locked
from tests.e2e.place import IMAGE, IMAGE_FILE, NETWORK
from tests.place import ROOT, TESTBED, Outcome, done, eventually, host, tried
from tests.testbed import layout

pytestmark = pytest.mark.timeout(1500)

SLOT = str(layout.SLOT + 20)
NAME = f"snf-ganeti-testbed-{SLOT}"
PROBE = "import socket,sys; print(socket.create_connection((sys.argv[1], 7), 3).recv(99).decode())"


def bed(*words: str, timeout: float = 900) -> Outcome:
    return host(TESTBED, *words, timeout=timeout, slot=SLOT)


def in_node(*words: str, place: str = "node1") -> str:
    return done(*words, place=place, slot=SLOT)


def up(*words: str) -> None:
    outcome = bed("up", *words, timeout=1400)
    assert outcome.status == 0, outcome.said


@pytest.fixture(autouse=True)
def _removed() -> Iterator[None]:
    yield
    outcome = bed("down")
    assert outcome.status == 0, outcome.said
    assert leftovers() == []


def leftovers() -> list[str]:
    """What this slot's testbed has on the machine."""
    paths = [Path("/run") / NAME, Path("/var/tmp") / NAME, *Path("/sys/fs/cgroup").glob(f"*/{NAME}")]
    found = [str(path) for path in paths if path.exists()]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if NAME in line]
    listing = host("losetup", "--list", "--noheadings", "-O", "BACK-FILE").stdout
    found += [line for line in listing.splitlines() if NAME in line]
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if any(NAME in word for word in words):
            found.append(" ".join(words))
    return found


def host_network() -> str:
    return host("ip", "-json", "address").stdout + host("ip", "-json", "route").stdout


def test_two_nodes_make_a_clean_cluster(node1: str) -> None:
    """The testbed that the other tests share."""
    assert done("gnt-node", "list", "--no-headers", "-o", "name").split() == ["node1.testbed", "node2.testbed"]
    verified = done("gnt-cluster", "verify")
    assert "ERROR" not in verified
    assert "WARNING" not in verified
    assert done("hostname", place="node2") == "node2.testbed"
    for address in ("198.51.100.1", "2001:db8:1::1"):
        assert f" {address}/" in done("ip", "address", place="outside")
    nodes = json.loads(host(TESTBED, "status", "--json").stdout)
    assert [node["node"] for node in nodes["nodes"]] == ["node1", "node2"]


def test_exec_passes_on_input_output_and_status_and_nothing_of_the_host_changes() -> None:
    network = host_network()
    up("--no-cluster")
    assert host_network() == network
    assert tried("sh", "-c", "exit 7", slot=SLOT).status == 7
    assert tried("cat", stdin="a\0b", slot=SLOT).stdout == "a\0b"
    assert tried("printenv", "SNF_TESTBED_SLOT", slot=SLOT).status == 1
    # Packages of the same version that were built anew are deployed, too.
    in_node("rm", "/usr/bin/archipelago")
    deployed = bed("deploy")
    assert deployed.status == 0, deployed.said
    in_node("test", "-x", "/usr/bin/archipelago")


def test_a_second_command_refuses_while_one_is_at_work() -> None:
    with locked(Path("/run/lock") / NAME, timeout=5):
        for command in ("up", "down", "deploy"):
            outcome = bed(command)
            assert outcome.status == 1
            assert outcome.stderr.count("\n") == 1
            assert "another testbed command" in outcome.stderr


def test_a_demo_keeps_its_testbed() -> None:
    """`deploy` stands for all commands that change something: were it not refused, it would do no harm."""
    holder = subprocess.Popen(["flock", "/run/lock/snf-ganeti-demo", "sleep", "60"])
    try:
        eventually("refusal", lambda: "a demo is running" in host(TESTBED, "deploy", slot="0").stderr, seconds=20)
    finally:
        host("pkill", "-P", str(holder.pid))
        holder.kill()
        holder.wait(20)


@pytest.mark.parametrize("ending", ["down", "up"])
def test_nothing_is_left_of_a_killed_run(ending: str) -> None:
    """SIGKILL in the middle of `up`; a later `down`, or an `up` and its `down`, removes all."""
    environment = {**os.environ, "SNF_TESTBED_SLOT": SLOT}
    killed = subprocess.Popen([TESTBED, "up", "--no-cluster"], env=environment, stderr=subprocess.DEVNULL)
    eventually("booting node", lambda: '"node"' in bed("status", "--json").stdout, seconds=600)
    killed.kill()
    killed.wait(20)
    assert leftovers()
    if ending == "up":
        up("--no-cluster")
        assert in_node("hostname") == "node1.testbed"
    outcome = bed("down")
    assert outcome.status == 0, outcome.said
    assert leftovers() == []


def test_wrong_numbers_of_nodes_are_refused() -> None:
    for count in ("0", "9", "-1"):
        outcome = bed("up", "--nodes", count)
        assert outcome.status == 2
        assert "between 1 and 8" in outcome.stderr


def test_an_instance_on_debian_13_with_a_block_device() -> None:
    built = host(ROOT / "tests/guest/build-image", "--small", timeout=1500)
    assert built.status == 0, built.said
    up("--release", "trixie")
    assert in_node("cat", "/etc/debian_version").startswith("13")
    in_node("archipelago", "image", "import", IMAGE, IMAGE_FILE, "--format", "raw")
    in_node(*NETWORK)
    # Ganeti 3.1 no longer takes mode and link as arguments.
    in_node("gnt-network", "connect", "--nic-parameters=mode=routed,link=100", "public")
    name = "thirteen.test"
    in_node(
        *("gnt-instance", "add", "-t", "ext", "--disk", f"0:size=1G,provider=archipelago,origin={IMAGE}"),
        *("-o", "snf-image+default", "-O", "img_id=null,img_format=diskdump", "--net", "0:ip=pool,network=public"),
        *("-B", "minmem=128M,maxmem=128M,vcpus=1", name),
    )
    assert in_node("gnt-instance", "list", "--no-headers", "-o", "status", name) == "running"
    assert "/dev/loop" in in_node("gnt-instance", "info", name)
    address = in_node("gnt-instance", "list", "--no-headers", "-o", "nic.ips", name).strip("[]'")
    eventually(
        "answer of the guest",
        lambda: in_node("/usr/bin/python3", "-c", PROBE, address, place="outside") == name,
        seconds=120,
    )
    in_node("gnt-instance", "remove", "-f", "--shutdown-timeout=1", name)

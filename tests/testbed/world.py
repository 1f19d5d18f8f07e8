# SPDX-License-Identifier: BSD-2-Clause
"""The testbed's own network and mounts: two holder processes, in whose namespaces everything else is.

`world` has the bridges and the mounts of the nodes' roots; `outside` plays the router and the Internet. When their
processes end, the kernel takes links, addresses and mounts away.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ganeti_plugin.errors import StateError
from ganeti_plugin.files import write_atomically
from ganeti_plugin.run import Argument, run, spawn
from tests.testbed import cgroup
from tests.testbed.layout import GATEWAY, GATEWAY6, MANAGEMENT, STATE

PIDS = STATE / "pids.json"

NETWORK = f"""
link set lo up
link add mgmt type bridge
link set mgmt up
addr add {MANAGEMENT}.254/24 dev mgmt
link add public type bridge
link set public up
link add pub-out type veth peer name pub0 netns OUTSIDE
link set pub-out master public up
"""

OUTSIDE = f"""
link set lo up
link set pub0 up
addr add {GATEWAY}/24 dev pub0
addr add {GATEWAY6}/64 dev pub0 nodad
"""


class NotUpError(StateError):
    template = "no testbed is up"
    hint = "run 'tests/testbed/testbed up'"


def start() -> None:
    """Start both holders and lay the network."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    shell = [
        *("/bin/bash", "-c"),
        # The holder's view of /sys must be that of its own network, and still show the cgroups.
        f"mount -t sysfs sysfs /sys && mount -t cgroup2 cgroup2 /sys/fs/cgroup && touch {STATE}/world.ready "
        "&& exec sleep infinity",
    ]
    world = _hold(["unshare", "--net", "--mount", "--propagation", "private", *shell], "world")
    _wait_for(STATE / "world.ready")
    outside = _hold(["unshare", "--net", "--mount", "--propagation", "private", "sleep", "infinity"], "outside")
    _wait_for_namespace(outside)
    write_atomically(PIDS, json.dumps({"world": world, "outside": outside}).encode(), durable=False)
    run([*enter("world"), "ip", "-batch", "-"], stdin=NETWORK.replace("OUTSIDE", str(outside)).encode())
    run([*enter("outside"), "ip", "-batch", "-"], stdin=OUTSIDE.encode())
    run([*enter("outside"), "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])


def _hold(command: Sequence[Argument], leaf: str) -> int:
    """Start a holder in the testbed's cgroup. unshare(1) without --fork becomes the command: the pid stays."""
    wrapper = ["/bin/bash", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', _leaf(leaf), *command]
    with open(STATE / f"{leaf}.log", "wb") as log:
        return spawn(wrapper, stdout=log.fileno(), stderr=log.fileno(), new_session=True).pid


def _leaf(leaf: str) -> Path:
    directory = cgroup.group() / leaf
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def leaf(name: str) -> Path:
    """A child cgroup, made if missing, for processes that callers start themselves."""
    return _leaf(name)


def _wait_for(path: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise StateError(message=f"the testbed's namespaces did not come up, see {STATE}/*.log")
        time.sleep(0.02)


def _wait_for_namespace(pid: int, seconds: float = 10) -> None:
    own = os.readlink("/proc/self/ns/net")
    deadline = time.monotonic() + seconds
    while os.readlink(f"/proc/{pid}/ns/net") == own:
        if time.monotonic() > deadline:
            raise StateError(message=f"the testbed's namespaces did not come up, see {STATE}/*.log")
        time.sleep(0.02)


def pid_of(place: str) -> int:
    try:
        pid = json.loads(PIDS.read_text())[place]
    except (FileNotFoundError, KeyError):
        raise NotUpError from None
    if not cgroup.populated():
        raise NotUpError
    return int(pid)


def enter(place: str) -> list[str]:
    """The command prefix that runs a program of the host in the namespaces of `world` or `outside`."""
    return ["nsenter", "--target", str(pid_of(place)), "--net", "--mount", "--"]

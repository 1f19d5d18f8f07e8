# SPDX-License-Identifier: BSD-2-Clause
"""Where the testbed keeps what, and who has which address. Pure: nothing here touches the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]

#: What can be made again, kept between runs: base roots, apt's archives, installed layers.
CACHE = Path("/var/cache/snf-ganeti")

#: Several testbeds can stand side by side; each has a slot. The machine's loop devices are what they share out.
SLOT = int(os.environ.get("SNF_TESTBED_SLOT", "0"))
NAME = f"snf-ganeti-testbed-{SLOT}"

#: The running testbed: dies with the machine.
STATE = Path("/run") / NAME

#: The nodes' writable layers; overlayfs does not take a tmpfs that is too small for Ganeti's queue and images.
SCRATCH = Path("/var/tmp") / NAME

#: One directory for all nodes, as a file system on a server would be; at SHARED_AT in each of them.
SHARED = SCRATCH / "shared"
SHARED_AT = "/srv/shared"

LOCK = Path("/run/lock") / NAME

#: Held by `./run demo`, which uses slot 0.
DEMO_LOCK = Path("/run/lock/snf-ganeti-demo")

RELEASES = ("bookworm", "trixie")

MANAGEMENT = "10.77.0"
CLUSTER_NAME = "cluster.testbed"
CLUSTER_ADDRESS = f"{MANAGEMENT}.100"

#: The routed public network; the router lives in the namespace `outside`.
PUBLIC = "198.51.100.0/24"
GATEWAY = "198.51.100.1"
PUBLIC6 = "2001:db8:1::/64"
GATEWAY6 = "2001:db8:1::1"

#: Loop devices of a node: never the host's first ones (and never loop0, whose minor number Ganeti misreads).
LOOPS_FIRST = 32
LOOPS_PER_NODE = 16
MOST_NODES = 8


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node; `index` starts at 1."""

    index: int

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def address(self) -> str:
        return f"{MANAGEMENT}.{self.index}"

    @property
    def directory(self) -> Path:
        return SCRATCH / self.name

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def public_port(self) -> str:
        """Our end of the veth pair whose other end is the node's uplink eth1."""
        return f"pub{self.index}"

    @property
    def loops(self) -> range:
        first = LOOPS_FIRST + (SLOT * MOST_NODES + self.index - 1) * LOOPS_PER_NODE
        return range(first, first + LOOPS_PER_NODE)


def hosts_file(nodes: int) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", f"{CLUSTER_ADDRESS} {CLUSTER_NAME}"]
    lines += [f"{Node(index=i).address} {Node(index=i).name}.testbed {Node(index=i).name}" for i in range(1, nodes + 1)]
    return "\n".join(lines) + "\n"

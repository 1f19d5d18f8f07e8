# SPDX-License-Identifier: BSD-2-Clause
"""Ganeti on the nodes: what an administrator types once for a new cluster."""

from __future__ import annotations

import os
import time

from ganeti_plugin import log
from ganeti_plugin.errors import StateError
from tests.testbed.layout import CLUSTER_ADDRESS, CLUSTER_NAME, Node
from tests.testbed.node import inside

#: TCG by the emulator's plain binary; the guest's own boot loader; a serial console for questions.
KVM = (
    "kvm:kvm_path=/usr/bin/qemu-system-x86_64,kernel_path=,initrd_path=,kernel_args=,serial_console=true,"
    "vhost_net=false,disk_cache=none,cpu_type=max,migration_bandwidth=100"
)

POLICY = "min:cpu-count=1,disk-count=1,disk-size=1,memory-size=1,nic-count=0,spindle-use=0"
POLICY_MAX = "max:cpu-count=8,disk-count=16,disk-size=33554432,memory-size=32768,nic-count=8,spindle-use=12"

#: Ganeti 3.1's allocator wants room for a failed node's instances, which a single node never has.
NO_CAPACITY_CHECKS = """
/usr/lib/ganeti/iallocators/hail --help | grep -q -- --no-capacity-checks || exit 0
gnt-cluster modify --default-iallocator-params=-no-capacity-checks
"""

#: A Python path that only Ganeti's daemons have: /etc/default/ganeti is read by daemon-util.
STAND_IN = "/usr/local/lib/testbed"
STAND_IN_SETTING = f"echo 'export PYTHONPATH={STAND_IN}' >> /etc/default/ganeti"
STAND_IN_CODE = """
import os.path
_isfile = os.path.isfile
os.path.isfile = lambda path: path == "/proc/sysrq-trigger" or _isfile(path)
"""


def make(nodes: list[Node], *, access: str) -> None:
    """Initialize a cluster on the first node and add the others."""
    first, *others = nodes
    for node in nodes:
        _stand_in_for_sysrq(node)
    if others:
        _trust_each_other(nodes)
    log.info("gnt-cluster init %s", CLUSTER_NAME)
    inside(
        first,
        [
            *("gnt-cluster", "init", "--master-netdev=host0", "--enabled-hypervisors=kvm", "--no-etc-hosts"),
            *("--enabled-disk-templates=ext", "-D", f"ext:access={access}"),
            *("-N", "mode=routed,link=100", "-H", KVM, "-I", "hail"),
            *("--ipolicy-bounds-specs", f"{POLICY}/{POLICY_MAX}", CLUSTER_NAME),
        ],
    )
    inside(first, ["sh", "-ec", NO_CAPACITY_CHECKS])
    _wait_for_master_ip(first)
    for node in others:
        log.info("gnt-node add %s", node.name)
        inside(first, ["gnt-node", "add", "--no-ssh-key-check", f"{node.name}.testbed"])


def _stand_in_for_sysrq(node: Node) -> None:
    """On a kernel without /proc/sysrq-trigger, have Ganeti's daemons in this node believe in it.

    `gnt-cluster verify` reports a node without that file as broken, and procfs has no place to mount one.
    """
    if os.path.exists("/proc/sysrq-trigger"):
        return
    inside(
        node,
        ["sh", "-ec", f"mkdir -p {STAND_IN}; cat > {STAND_IN}/sitecustomize.py; {STAND_IN_SETTING}"],
        stdin=STAND_IN_CODE.encode(),
    )


def _trust_each_other(nodes: list[Node]) -> None:
    """Let root of the first node into the others by ssh, as `gnt-node add` needs it."""
    first, *others = nodes
    inside(first, ["sh", "-ec", "mkdir -pm 700 ~/.ssh; ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519"])
    public = inside(first, ["cat", "/root/.ssh/id_ed25519.pub"]).encode()
    for node in others:
        inside(node, ["sh", "-ec", "mkdir -pm 700 ~/.ssh; cat >> ~/.ssh/authorized_keys"], stdin=public)


def _wait_for_master_ip(first: Node, seconds: float = 30) -> None:
    """The node daemon brings the address up in the background, after it has asked around for a second holder."""
    deadline = time.monotonic() + seconds
    while f" {CLUSTER_ADDRESS}/" not in inside(first, ["ip", "-4", "address", "show"]):
        if time.monotonic() > deadline:
            raise StateError(message=f"{first.name} does not take the cluster's address {CLUSTER_ADDRESS}")
        time.sleep(0.2)

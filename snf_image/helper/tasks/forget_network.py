# SPDX-License-Identifier: BSD-2-Clause
"""ForgetNetwork: leases, and names that were tied to the hardware addresses of the machine.

The configuration of the network stays: a clone's is written by ConfigureNetwork, or by its own cloud-init.
"""

from __future__ import annotations

from snf_image.helper.task import Context, Task
from snf_image.helper.tree import Tree

#: dhclient (Debian, Red Hat), dhcpcd, systemd-networkd.
EMPTIED = (
    "var/lib/dhcp",
    "var/lib/dhclient",
    "var/lib/dhcpcd",
    "var/lib/dhcpcd5",
    "var/lib/systemd/network",
)
NETWORK_MANAGER = "var/lib/NetworkManager"
_STATES = ("secret_key", "timestamps", "seen-bssids")
RULES = "etc/udev/rules.d"


def tied(tree: Tree) -> list[str]:
    """Files of folders whose other files stay."""
    found = [f"{RULES}/{name}" for name in tree.names(RULES) if name.endswith(("-persistent-net.rules", "-cd.rules"))]
    states = [name for name in tree.names(NETWORK_MANAGER) if name.endswith(".lease") or name in _STATES]
    return [*found, *(f"{NETWORK_MANAGER}/{name}" for name in states)]


def run(context: Context) -> None:
    tree = context.tree
    removed = sum(tree.empty(path) for path in EMPTIED) + sum(tree.remove(path) for path in tied(tree))
    context.facts["network_states_removed"] = str(removed)


TASK = Task(name="ForgetNetwork", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

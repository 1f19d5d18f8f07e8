# SPDX-License-Identifier: BSD-2-Clause
"""ConfigureNetwork: every NIC gets the addresses that Ganeti knows for it, in the way of the image's distribution."""

from __future__ import annotations

from snf_image.helper.network import ifupdown, netplan, networkd
from snf_image.helper.network.plan import interfaces
from snf_image.helper.task import Context, Task


def run(context: Context) -> None:
    plans = interfaces(context.request)
    tree = context.tree
    if netplan.is_for(tree):
        netplan.write(tree, plans)
        context.facts["network_driver"] = "netplan"
    elif networkd.is_for(tree) and not tree.exists("sbin/ifup"):
        networkd.write(tree, plans)
        context.facts["network_driver"] = "networkd"
    elif ifupdown.is_for(tree):
        ifupdown.write(tree, plans)
        context.facts["network_driver"] = "ifupdown"
    else:
        context.warn("the image's way of configuring networks is unknown; its network is as its author left it")


TASK = Task(
    name="ConfigureNetwork",
    run=run,
    applies=lambda context: bool(context.request.nics),
    after=("MountImage",),
    before=("UmountImage",),
    needs_mount=True,
)

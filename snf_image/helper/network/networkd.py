# SPDX-License-Identifier: BSD-2-Clause
"""systemd-networkd: one .network file an interface, matched by MAC, whatever its name."""

from __future__ import annotations

from snf_image.helper.network.plan import DHCP, SLAAC, SLAAC_DHCP, Interface
from snf_image.helper.tree import Tree

FOLDER = "etc/systemd/network"
ENABLED = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"


def is_for(tree: Tree) -> bool:
    """Whether the image starts networkd. The link leads to /lib, which may be elsewhere, so it is only looked for."""
    return ENABLED.rpartition("/")[2] in tree.names(ENABLED.rpartition("/")[0])


def text(plan: Interface) -> str:
    """The .network file of an interface."""
    dhcp = {(True, True): "yes", (True, False): "ipv4", (False, True): "ipv6", (False, False): "no"}
    lines = ["# Written by snf-image.", "[Match]", f"MACAddress={plan.mac}", "", "[Network]"]
    lines.append(f"DHCP={dhcp[plan.ipv4 == DHCP, plan.ipv6 == DHCP]}")
    lines.append(f"IPv6AcceptRA={'yes' if plan.ipv6 in (SLAAC, SLAAC_DHCP, DHCP) else 'no'}")
    lines.append("IPv6PrivacyExtensions=no")
    lines.extend(f"Address={address}" for address in (plan.address, plan.address6) if address)
    for gateway in (plan.gateway, plan.gateway6):
        if gateway:
            lines += ["", "[Route]", f"Gateway={gateway}", "GatewayOnLink=yes"]
    if plan.ipv6 == SLAAC_DHCP:
        lines += ["", "[IPv6AcceptRA]", "DHCPv6Client=always"]
    return "\n".join(lines) + "\n"


def write(tree: Tree, plans: list[Interface]) -> None:
    tree.make_directories(FOLDER, 0o755)
    for plan in plans:
        tree.write_text(f"{FOLDER}/10-snf-image-{plan.name}.network", text(plan))

# SPDX-License-Identifier: BSD-2-Clause
"""netplan: one YAML file for all interfaces, matched by MAC.

The values are checked addresses: nothing needs quoting but what YAML could read as a number, and that is quoted.
"""

from __future__ import annotations

from snf_image.helper.network.plan import DHCP, SLAAC, SLAAC_DHCP, STATIC, Interface
from snf_image.helper.tree import Tree

FOLDER = "etc/netplan"
NAME = "50-snf-image.yaml"


def is_for(tree: Tree) -> bool:
    return tree.is_directory(FOLDER) and (tree.exists("usr/sbin/netplan") or tree.exists("usr/share/netplan"))


def _interface(plan: Interface) -> list[str]:
    def flag(value: bool) -> str:
        return "true" if value else "false"

    lines = [
        f"    {plan.name}:",
        "      match:",
        f'        macaddress: "{plan.mac}"',
        f"      set-name: {plan.name}",
        f"      dhcp4: {flag(plan.ipv4 == DHCP)}",
        f"      dhcp6: {flag(plan.ipv6 in (DHCP, SLAAC_DHCP))}",
        f"      accept-ra: {flag(plan.ipv6 in (SLAAC, SLAAC_DHCP, DHCP))}",
    ]
    addresses = [each for each in (plan.address, plan.address6) if each]
    if addresses:
        lines += ["      addresses:", *(f'        - "{address}"' for address in addresses)]
    routes = [("0.0.0.0/0", plan.gateway), ("::/0", plan.gateway6)]
    if plan.gateway or plan.gateway6:
        lines.append("      routes:")
    for destination, gateway in routes:
        if gateway:
            lines += [f'        - to: "{destination}"', f'          via: "{gateway}"', "          on-link: true"]
    return lines


def text(plans: list[Interface]) -> str:
    lines = ["# Written by snf-image.", "network:", "  version: 2", "  ethernets:"]
    for plan in plans:
        assert plan.ipv4 != STATIC or plan.address
        lines += _interface(plan)
    return "\n".join(lines) + "\n"


def write(tree: Tree, plans: list[Interface]) -> None:
    """The image's own files are set aside: netplan would merge them."""
    for name in tree.names(FOLDER):
        if name.endswith(".yaml") and name != NAME:
            tree.rename(f"{FOLDER}/{name}", name + ".snf-image-old")
    tree.write_text(f"{FOLDER}/{NAME}", text(plans), mode=0o600)

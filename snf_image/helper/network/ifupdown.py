# SPDX-License-Identifier: BSD-2-Clause
"""ifupdown: /etc/network/interfaces, and links that give the interfaces their names by MAC where udev reads them."""

from __future__ import annotations

from snf_image.helper.network.plan import DHCP, SLAAC, SLAAC_DHCP, STATIC, Interface
from snf_image.helper.tree import Tree

PATH = "etc/network/interfaces"
LINKS = "etc/systemd/network"

HEADER = """# Written by snf-image. The image's own file, if there was one, is interfaces.snf-image-old.
auto lo
iface lo inet loopback
"""


def is_for(tree: Tree) -> bool:
    return tree.exists(PATH) or tree.exists("sbin/ifup") or tree.exists("usr/sbin/ifup")


def _ipv4(plan: Interface) -> list[str]:
    if plan.ipv4 == DHCP:
        return [f"iface {plan.name} inet dhcp"]
    if plan.ipv4 == STATIC:
        # ifupdown adds the default route with "onlink", so a gateway outside the subnet works as well.
        gateway = [f"    gateway {plan.gateway}"] if plan.gateway else []
        return [f"iface {plan.name} inet static", f"    address {plan.address}", *gateway]
    return []


def _ipv6(plan: Interface) -> list[str]:
    if plan.ipv6 == DHCP:
        return [f"iface {plan.name} inet6 dhcp"]
    if plan.ipv6 == SLAAC:
        return [f"iface {plan.name} inet6 auto", "    privext 0"]
    if plan.ipv6 == SLAAC_DHCP:
        return [f"iface {plan.name} inet6 auto", "    privext 0", "    dhcp 1"]
    if plan.ipv6 == STATIC:
        gateway = [f"    gateway {plan.gateway6}"] if plan.gateway6 else []
        fixed = ["    accept_ra 0", "    privext 0"]
        return [f"iface {plan.name} inet6 static", f"    address {plan.address6}", *gateway, *fixed]
    return []


def text(plans: list[Interface]) -> str:
    """The whole interfaces file."""
    blocks = []
    for plan in plans:
        stanzas = [*_ipv4(plan), *_ipv6(plan)] or [f"iface {plan.name} inet manual"]
        blocks.append("\n".join([f"auto {plan.name}", f"allow-hotplug {plan.name}", *stanzas]) + "\n")
    return "\n".join([HEADER, *blocks])


def link(plan: Interface) -> str:
    return f"# Written by snf-image.\n[Match]\nMACAddress={plan.mac}\n\n[Link]\nName={plan.name}\n"


def write(tree: Tree, plans: list[Interface]) -> None:
    old = tree.read(PATH)
    if old is not None:
        tree.write(f"{PATH}.snf-image-old", old)
    tree.make_directories("etc/network", 0o755)
    tree.write_text(PATH, text(plans))
    if tree.is_directory("etc/systemd"):
        tree.make_directories(LINKS, 0o755)
        for plan in plans:
            tree.write_text(f"{LINKS}/10-snf-image-{plan.name}.link", link(plan))

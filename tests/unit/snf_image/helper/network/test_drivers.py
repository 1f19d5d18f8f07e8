# SPDX-License-Identifier: BSD-2-Clause
"""The exact files of each driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from snf_image.helper.network import ifupdown, netplan, networkd
from snf_image.helper.network.plan import Interface
from snf_image.helper.tasks import configure_network
from tests.unit.snf_image.helper.support import STATIC, context_of, tree_of

AUTOMATIC = Interface(name="eth1", mac="aa:00:00:12:34:57", ipv4="dhcp", ipv6="slaac_dhcp")
BARE = Interface(name="eth2", mac="aa:00:00:12:34:58")


def test_ifupdown() -> None:
    assert ifupdown.text([STATIC, AUTOMATIC, BARE]) == (
        ifupdown.HEADER
        + """
auto eth0
allow-hotplug eth0
iface eth0 inet static
    address 198.51.100.7/24
    gateway 198.51.100.1
iface eth0 inet6 static
    address 2001:db8:1:0:a800:ff:fe12:3456/64
    gateway 2001:db8:1::1
    accept_ra 0
    privext 0

auto eth1
allow-hotplug eth1
iface eth1 inet dhcp
iface eth1 inet6 auto
    privext 0
    dhcp 1

auto eth2
allow-hotplug eth2
iface eth2 inet manual
"""
    )


def test_networkd() -> None:
    assert (
        networkd.text(STATIC)
        == """# Written by snf-image.
[Match]
MACAddress=aa:00:00:12:34:56

[Network]
DHCP=no
IPv6AcceptRA=no
IPv6PrivacyExtensions=no
Address=198.51.100.7/24
Address=2001:db8:1:0:a800:ff:fe12:3456/64

[Route]
Gateway=198.51.100.1
GatewayOnLink=yes

[Route]
Gateway=2001:db8:1::1
GatewayOnLink=yes
"""
    )
    assert "DHCP=ipv4\nIPv6AcceptRA=yes\n" in networkd.text(AUTOMATIC)
    assert "DHCPv6Client=always" in networkd.text(AUTOMATIC)


def test_netplan() -> None:
    assert (
        netplan.text([STATIC])
        == """# Written by snf-image.
network:
  version: 2
  ethernets:
    eth0:
      match:
        macaddress: "aa:00:00:12:34:56"
      set-name: eth0
      dhcp4: false
      dhcp6: false
      accept-ra: false
      addresses:
        - "198.51.100.7/24"
        - "2001:db8:1:0:a800:ff:fe12:3456/64"
      routes:
        - to: "0.0.0.0/0"
          via: "198.51.100.1"
          on-link: true
        - to: "::/0"
          via: "2001:db8:1::1"
          on-link: true
"""
    )


NETWORKD_LINK = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"


@pytest.mark.parametrize(
    ("files", "driver", "written"),
    [
        ({"etc/network/interfaces": "x"}, "ifupdown", "etc/network/interfaces"),
        ({"usr/sbin/ifup": "", "etc/network/x": ""}, "ifupdown", "etc/network/interfaces"),
        (
            {NETWORKD_LINK: "", "etc/network/interfaces": ""},
            "networkd",
            "etc/systemd/network/10-snf-image-eth0.network",
        ),
        ({"etc/netplan/01.yaml": "x", "usr/sbin/netplan": ""}, "netplan", "etc/netplan/50-snf-image.yaml"),
    ],
)
def test_the_driver_fits_the_image(
    tmp_path: Path, files: dict[str, str], driver: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fchown", lambda *_arguments: None)
    context = context_of(tree_of(tmp_path, files))
    for folder in ("etc/network", "etc/systemd/network"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    configure_network.run(context)
    assert context.facts["network_driver"] == driver
    assert "198.51.100.7" in (tmp_path / written).read_text()


def test_the_old_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fchown", lambda *_arguments: None)
    configure_network.run(context_of(tree_of(tmp_path, {"etc/network/interfaces": "mine\n"})))
    assert (tmp_path / "etc/network/interfaces.snf-image-old").read_text() == "mine\n"


def test_an_unknown_system_is_warned_about(tmp_path: Path) -> None:
    warnings: list[str] = []
    configure_network.run(context_of(tmp_path, warnings))
    assert "unknown" in warnings[0]

# SPDX-License-Identifier: BSD-2-Clause
"""Every setting of the suite, declared once: name, type, default, unit, help.

From this one list come the reader (`config.py`), the example file with every setting commented, the manual page
snf-ganeti.toml(5), and the record that code reads: `config.load().image.helper_memory`. A section is a class, a setting
is an attribute of it, and the type of a setting is the type of its default. To add one, add an attribute here; nothing
else needs to change.

Plain descriptors and not dataclasses: this module is read by programs that Ganeti starts seven times for one disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, cast

T = TypeVar("T")

_MAC = r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"


class Setting:
    """One declared setting: a descriptor that answers with the configured value, or with the default."""

    def __init__(self, default: object, **facts: Any) -> None:
        self.default = default
        self.help: str = facts["help"]
        self.unit: str = facts["unit"]
        self.minimum: int | None = facts["minimum"]
        self.maximum: int | None = facts["maximum"]
        #: What a string must match from end to end, and the same in words.
        self.pattern: str = facts["pattern"]
        self.expected: str = facts["expected"]
        self.name = ""
        self.section = ""

    def __set_name__(self, owner: type[Section], name: str) -> None:
        self.name = name
        self.section = owner.name

    def __get__(self, instance: Section | None, owner: type[Section]) -> Any:
        return self if instance is None else instance.values.get(self.name, self.default)

    def __set__(self, instance: Section, value: object) -> None:
        raise AttributeError(f"setting {self.section}.{self.name} is read only")


def setting(
    default: T,
    *,
    help: str,
    unit: str = "",
    minimum: int | None = None,
    maximum: int | None = None,
    pattern: str = "",
    expected: str = "",
) -> T:
    """Declare a setting. The result is a descriptor; the cast makes the attribute's type that of the default."""
    facts = {"help": help, "unit": unit, "minimum": minimum, "maximum": maximum, "pattern": pattern}
    return cast("T", Setting(default, **facts, expected=expected))


class Section:
    """A frozen record of the settings of one section."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self, values: Mapping[str, object] = MappingProxyType({})) -> None:
        self.values = MappingProxyType(dict(values))

    @classmethod
    def settings(cls) -> Iterator[Setting]:
        """The settings of this section, in the order of their declaration."""
        return (value for value in vars(cls).values() if isinstance(value, Setting))


class Accel(StrEnum):
    """How the helper VM runs."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Archipelago(Section):
    name = "archipelago"
    summary = "Volumes, snapshots and images: the ExtStorage provider archipelago"

    stores: Mapping[str, str] = setting(
        MappingProxyType({"main": "files:/var/lib/snf-archipelago/store"}),
        pattern=r"files:/.*|rados:[^/?].*",
        expected="the place of a store: files:/DIRECTORY or rados:POOL[/NAMESPACE][?OPTIONS]",
        help="Table of the stores: a name for each, and where it is. files:/DIRECTORY may be on a file system that "
        "several nodes share. rados:POOL[/NAMESPACE][?conf=FILE&user=NAME&keyring=FILE] is in a Ceph cluster. "
        "The same on all nodes. A store must have been made: archipelago store create NAME (that of the default "
        "makes itself).",
    )
    default_store: str = setting(
        "main",
        pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*",
        expected="the name of a store",
        help="The store of disks that do not name one with the parameter store.",
    )
    space_warn: int = setting(
        80,
        unit="per cent",
        minimum=1,
        maximum=101,
        help="How full a store may be before 'gnt-cluster verify' and the log say so; 101 for never.",
    )
    space_refuse: int = setting(
        95,
        unit="per cent",
        minimum=1,
        maximum=101,
        help="How full a store may be before new volumes, clones and images are refused; 101 for never. Volumes that "
        "are there go on growing, so leave them room.",
    )
    pithos: Mapping[str, str] = setting(
        MappingProxyType({}),
        pattern=r"(nfs|archip):/.*|rados:maps=.*",
        expected="nfs:/DIRECTORY, archip:/DIRECTORY or rados:maps=POOL,blocks=POOL[?OPTIONS]",
        help="Table of Pithos stores whose files may be origins of disks (origin=pithosmap://MAP/SIZE): a name for "
        "each, and where it is. nfs:/DIRECTORY holds Pithos' own folders blocks and maps, archip:/DIRECTORY those of "
        "Archipelago. rados:maps=POOL,blocks=POOL[?conf=FILE&user=NAME&keyring=FILE] is in a Ceph cluster. "
        "They are only read, by the user below. The same on all nodes.",
    )
    user: str = setting(
        "snf-archipelago",
        pattern=r"[a-z_][a-z0-9_-]{0,31}",
        expected="the name of a system user",
        help="System user that owns the store and runs the servers of attached volumes.",
    )
    image_limit: int = setting(
        1024,
        unit="GiB",
        minimum=1,
        maximum=65536,
        help="Size of an image at which an import from a compressed file, a URL or standard input stops.",
    )
    url_hosts: Sequence[str] = setting(
        (),
        help="Hosts that images may be fetched from, such as cloud.debian.org, *.example.org or mirror.local:8080; "
        "none unless listed. Redirects may lead to listed hosts only.",
    )
    url_networks: Sequence[str] = setting(
        (),
        help="Networks outside of the public address space, such as 10.1.0.0/16, that images may be fetched from.",
    )


class Image(Section):
    name = "image"
    summary = "Putting images on disks and customizing them: the OS definition snf-image"

    image_directory: Path = setting(
        Path("/var/lib/snf-image"),
        help="Directory of local images: an img_id without a scheme is the name of a file in it.",
    )
    helper_directory: Path = setting(
        Path("/var/lib/snf-image/helper"),
        help="Directory of the helper VM's files, which 'snf-image helper build' makes.",
    )
    helper_memory: int = setting(
        512,
        unit="MiB",
        minimum=128,
        maximum=65536,
        help="Memory of the helper VM.",
    )
    helper_timeout: int = setting(
        120,
        unit="seconds",
        minimum=1,
        maximum=86400,
        help="Time that the helper VM has for all its tasks; then it is ended and the creation of the instance fails.",
    )
    helper_parallel: int = setting(
        4,
        minimum=1,
        maximum=1024,
        help="How many helper VMs may run at once on a node; further creations wait for their turn.",
    )
    accel: Accel = setting(
        Accel.AUTO,
        help="How the helper VM runs: kvm, tcg (emulation), or auto: kvm where it is proved to work, tcg elsewhere.",
    )
    progress_monitor: str = setting(
        "",
        pattern=r"(/[^/]+)+|",
        expected="an absolute path, or empty",
        help="Absolute path of a program that is fed the progress of a creation on its standard input; empty for none.",
    )
    dhcp_tags: Sequence[str] = setting(
        ("auto", "dhcp", "nfdhcpd"),
        help="Tags of a Ganeti network that mean: guests get their IPv4 address by DHCP.",
    )
    stateful_dhcpv6_tags: Sequence[str] = setting(
        ("dhcpv6", "stateful_dhcpv6"),
        help="Tags of a Ganeti network that mean: guests get their IPv6 address by DHCPv6.",
    )
    stateless_dhcpv6_tags: Sequence[str] = setting(
        ("nfdhcpd", "stateless_dhcpv6"),
        help="Tags of a Ganeti network that mean: guests make their IPv6 address themselves (SLAAC) and ask DHCPv6 "
        "for the rest.",
    )
    default_nic_config: str = setting(
        "dhcp",
        pattern=r"(dhcp\+)?(dhcpv6|slaac|slaac_dhcp)|dhcp|",
        expected="empty, dhcp, dhcpv6, slaac, slaac_dhcp, or dhcp+ and one of the last three",
        help="What to configure in a guest whose only NIC has neither address nor IPv6 gateway: empty for nothing, "
        "dhcp, dhcpv6, slaac, slaac_dhcp, or dhcp+ followed by one of the last three.",
    )


class Network(Section):
    name = "network"
    summary = "Routes, filters and firewall profiles of instances' NICs"

    uplinks: Mapping[str, str] = setting(
        MappingProxyType({}),
        help="Table of routing table (the LINK of a routed NIC) to the node's interface that leads outside, "
        'for instance { "100" = "eth1" }.',
    )
    gateway_mac: str = setting(
        "cc:47:52:4e:45:54",
        pattern=r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}",
        expected="the MAC address of one interface",
        help="MAC address of every tap on the node's side: the same on all nodes, so that a migrated guest's "
        "neighbour cache stays true.",
    )
    mac_mask: str = setting(
        "ff:ff:f0:00:00:00",
        pattern=_MAC,
        expected="six bytes like a MAC address",
        help="The bits of a MAC address that tell one private-filtered network from another.",
    )


SECTIONS: tuple[type[Section], ...] = (Archipelago, Image, Network)

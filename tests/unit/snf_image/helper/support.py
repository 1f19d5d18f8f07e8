# SPDX-License-Identifier: BSD-2-Clause
"""A context for tasks without a VM: a tree in a temporary folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from snf_image import protocol
from snf_image.helper.network.plan import Interface
from snf_image.helper.properties import Properties
from snf_image.helper.task import Context
from snf_image.helper.tree import Tree

NIC = protocol.Nic(
    index=0,
    mac="AA:00:00:12:34:56",
    mode="routed",
    ip="198.51.100.7",
    subnet="198.51.100.0/24",
    gateway="198.51.100.1",
    subnet6="2001:db8:1::/64",
    gateway6="2001:db8:1::1",
)

#: What that NIC's guest is to be told.
STATIC = Interface(
    name="eth0",
    mac="aa:00:00:12:34:56",
    ipv4="static",
    address="198.51.100.7/24",
    gateway="198.51.100.1",
    ipv6="static",
    address6="2001:db8:1:0:a800:ff:fe12:3456/64",
    gateway6="2001:db8:1::1",
)

REQUEST = protocol.Request(
    nonce="ab" * 16,
    entropy="cd" * 64,
    time=1_800_000_000,
    hostname="web1.example.org",
    disks=(protocol.Disk(index=0, serial="snf-disk-0"),),
    nics=(NIC,),
)


class Warnings(list[str]):
    """Collects warnings; `Context.warn` is its append."""


def request_of(**changes: object) -> protocol.Request:
    return dataclasses.replace(REQUEST, **changes)  # type: ignore[arg-type] # the tests' own keywords


def context_of(root: Path | None = None, warnings: list[str] | None = None, **changes: object) -> Context:
    request = request_of(**changes)
    warn = (warnings if warnings is not None else []).append
    context = Context(request, Properties(request.properties, warn), (), warn)
    if root is not None:
        context.mounted = Tree.at(str(root))
    return context


def tree_of(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root

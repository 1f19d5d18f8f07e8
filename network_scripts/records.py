# SPDX-License-Identifier: BSD-2-Clause
"""What each guest interface was given, so that a new guest of the same name replaces it at once.

A hint, never the truth: the kernel is. Without a record, or with one that is wrong, the transaction is refused and the
kernel's own listing is used, whose cost grows with the guests on the node.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from ganeti_plugin import files
from network_scripts.render import Element

DIRECTORY = Path("/run/snf-network")

#: Bytes; a NIC has some twenty elements.
LIMIT = 65536


def _path(tap: str) -> Path:
    return DIRECTORY / f"{tap}.json"


def write(tap: str, elements: Iterable[Element]) -> None:
    """Remember the elements. A failure costs time later, nothing else."""
    with contextlib.suppress(OSError):
        files.write_atomically(_path(tap), json.dumps(list(elements)).encode(), mode=0o600, durable=False)


def read(tap: str) -> tuple[Element, ...]:
    """The elements that an interface of this name was given last; empty when that is not known."""
    try:
        rows = json.loads(_path(tap).read_bytes()[:LIMIT])
        return tuple(Element(family, name, tuple(key), value) for family, name, key, value in rows)
    except (OSError, ValueError, TypeError):
        return ()


def forget(tap: str) -> None:
    with contextlib.suppress(OSError):
        files.remove(_path(tap))


def profile_changes(address: IPv4Address | IPv6Address, profile: str) -> bool:
    """Note the firewall profile of an address; whether it had another one here before, since the node started.

    An address that had none has no connections to be held to the new one.
    """
    path = DIRECTORY / f"profile-{address}"
    try:
        before = path.read_text(encoding="ascii")[:64]
    except FileNotFoundError:
        before = ""
    except (OSError, ValueError):
        before = "unknown"
    if before != profile:
        with contextlib.suppress(OSError):
            files.write_atomically(path, profile.encode(), mode=0o600, durable=False)
    return before not in ("", profile)

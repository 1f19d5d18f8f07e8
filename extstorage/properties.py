# SPDX-License-Identifier: BSD-2-Clause
"""Properties kept beside an image, for whoever customizes a disk: `archipelago volume properties DISK`.

snf-image knows a disk as Ganeti hands it over (a block device, or the URI of its server) and is no part of this
provider. So it asks this command: docs/architecture.md tells the contract.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from extstorage import devices
from extstorage.names import check_name
from extstorage.servers import Site
from ganeti_plugin.errors import InputError


class NotOursError(InputError):
    """Exit status 2 is part of the contract: it means that there is nothing to be told."""

    template = "{disk!r} is not an attached volume of archipelago"


def volume_of(site: Site, disk: str) -> str:
    """The volume that a disk shows: given its block device, the URI of its server, or its own name."""
    if disk.startswith("nbd+unix:"):
        name = _of_uri(site, disk)
    elif disk.startswith("/"):
        name = _of_device(site, disk)
    else:
        return check_name(disk, "the volume name")
    if not name:
        raise NotOursError(disk=disk[:200])
    return check_name(name, "the volume name")


def _of_uri(site: Site, uri: str) -> str:
    """The socket's path names the volume; what QEMU is told behind a comma does not matter."""
    sockets = parse_qs(urlsplit(uri.partition(",")[0]).query).get("socket", [])
    path = Path(sockets[0]) if len(sockets) == 1 else Path()
    return path.parent.name if path == site.socket(path.parent.name) else ""


def _of_device(site: Site, device: str) -> str:
    """The kernel is asked whose a device is: numbers are used again (threat L14)."""
    real = os.path.realpath(device)
    names = sorted(path.name for path in site.devices.iterdir()) if site.devices.is_dir() else []
    return next((name for name in names if devices.device_of(site, name) == real), "")

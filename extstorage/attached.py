# SPDX-License-Identifier: BSD-2-Clause
"""What is attached on this node: one directory under /run and one server for each volume."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from extstorage import answer, control, devices, servers
from extstorage.errors import ServerError
from extstorage.servers import Site
from ganeti_plugin.errors import StateError

#: Seconds in which systemd starts a server again that died.
_COMES_BACK = 2.0


class LeftAloneError(StateError):
    template = "the server of the volume {name!r} was left alone: {reason}"


class Attached(NamedTuple):
    """One volume, as its server describes it; with an empty mode when there is no server."""

    name: str
    #: The name of the store that it is in.
    store: str
    #: A `modes.Mode`, or "broken".
    mode: str
    #: Whether the server holds the volume's lock.
    writer: bool
    pid: int
    #: The path of its block device, or empty.
    device: str
    #: Why requests fail, or empty.
    fault: str
    #: Counters since the server started: requests by kind, and bytes.
    requests: Mapping[str, int]


def names(site: Site) -> list[str]:
    try:
        return sorted(
            name for name in os.listdir(site.run) if not name.startswith(".") and site.directory(name).is_dir()
        )
    except FileNotFoundError:
        return []


def look(site: Site, name: str) -> Attached:
    """Ask the server of one volume."""
    device = answer.device_of(str(site.device_directory(name)), str(site.directory(name)))
    nothing = Attached(name, servers.recorded_store(site, name), "", False, 0, device, "", {})
    if not servers.is_running(site, name):
        return nothing._replace(fault="there is no server")
    try:
        status = control.call(site.directory(name), name, "status")
    except ServerError as error:
        return nothing._replace(fault=str(error))
    requests = status["requests"]
    assert isinstance(requests, dict)
    mode, writer, pid = str(status["mode"]), bool(status["writer"]), int(str(status["pid"]))
    return nothing._replace(mode=mode, writer=writer, pid=pid, fault=str(status["fault"]), requests=requests)


def is_dead(site: Site, name: str) -> bool:
    """Whether a server is gone and nobody starts it again."""
    return not servers.wait_for(lambda: servers.is_running(site, name), _COMES_BACK)


def restart(site: Site, name: str) -> Attached:
    """Have other processes of today's code serve the volume and watch its device; clients notice a pause.

    Raises LeftAloneError when it must stay, and ServerError when it does not come back as it was.
    """
    before = look(site, name)
    if not before.mode:
        raise LeftAloneError(name=name, reason=before.fault)
    if before.mode == "shared":
        raise LeftAloneError(name=name, reason="it is in the middle of a migration; try again later")
    servers.restart(site, name)
    after = look(site, name)
    if (after.mode, after.writer) != (before.mode, before.writer) and before.writer:
        raise ServerError(name=name, message=f"it was {before.mode} and came back as {after.mode or 'nothing'}")
    # Not before the server is back: its connection is what the old watcher heals.
    devices.renew_watcher(site, name)
    return after

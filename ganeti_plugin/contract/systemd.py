# SPDX-License-Identifier: BSD-2-Clause
"""What systemd tells a service through its environment: where to report that it is ready, and its sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from ganeti_plugin.errors import StateError

#: The descriptor of the first socket that systemd passes on (SD_LISTEN_FDS_START).
_FIRST_SOCKET = 3


class NoSocketError(StateError):
    template = "systemd passed {count} sockets, not one"
    hint = "start the socket unit, not the program"


def notify(message: str, environment: Mapping[str, str] | None = None) -> None:
    """Send a message such as READY=1 (sd_notify(3)); nothing happens outside of systemd."""
    path = (os.environ if environment is None else environment).get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller, contextlib.suppress(OSError):
        caller.connect("\0" + path[1:] if path.startswith("@") else path)
        caller.send(message.encode())


def passed_socket(environment: Mapping[str, str] | None = None) -> socket.socket:
    """The one socket of the unit that activated this service (sd_listen_fds(3))."""
    given = os.environ if environment is None else environment
    count = given.get("LISTEN_FDS", "0") if given.get("LISTEN_PID") == str(os.getpid()) else "0"
    if count != "1":
        raise NoSocketError(count=count)
    return socket.socket(fileno=_FIRST_SOCKET)

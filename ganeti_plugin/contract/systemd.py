# SPDX-License-Identifier: BSD-2-Clause
"""What systemd tells a service through its environment: where to report that it is ready."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


def notify(message: str, environment: Mapping[str, str] | None = None) -> None:
    """Send a message such as READY=1 (sd_notify(3)); nothing happens outside of systemd."""
    path = (os.environ if environment is None else environment).get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller, contextlib.suppress(OSError):
        caller.connect("\0" + path[1:] if path.startswith("@") else path)
        caller.send(message.encode())

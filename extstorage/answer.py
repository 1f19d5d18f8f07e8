# SPDX-License-Identifier: BSD-2-Clause
"""What attach prints: the block device on the first line, then URIs. No newline at the end: Ganeti would count it.

Light: attach of an attached volume imports this and little else.
"""

from __future__ import annotations

import os
import socket

#: One directory for each attached volume; the socket paths are the same on all nodes, as live migration needs it.
RUN = "/run/snf-archipelago"

#: The same for block devices. Only root may write here: the paths below it are given to losetup.
DEVICES = "/run/snf-archipelago-device"

#: Seconds that QEMU keeps trying while the server restarts. It rides on the URI: Ganeti 3.0 hands that on as it is.
RECONNECT_DELAY = 30


def is_serving(directory: str) -> bool:
    """Whether the server of the volume with this directory under /run is alive: the kernel says so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(f"{directory}/control.sock")
        except OSError:
            return False
    return os.path.exists(f"{directory}/nbd.sock")


def device_of(directory: str) -> str:
    """The block device that shows the volume, or "". The kernel is asked whether it still is that volume's (L14)."""
    try:
        with open(f"{directory}/loop", encoding="ascii") as stream:
            number = int(stream.read())
    except (OSError, ValueError):
        return ""
    return f"/dev/loop{number}" if is_loop_of(directory, number) else ""


def is_loop_of(directory: str, number: int) -> bool:
    """Whether a loop device stands on the volume's file."""
    try:
        with open(f"/sys/block/loop{number}/loop/backing_file", encoding="utf-8") as stream:
            backing = stream.read().rstrip("\n")
    except OSError:
        return False
    return number > 0 and backing == f"{directory}/disk" and os.path.exists(f"/dev/loop{number}")


def text(device: str, socket_path: str) -> str:
    """The output of attach; `socket_path` is empty when no URI is wanted."""
    uri = f"\nkvm:nbd+unix:///?socket={socket_path},file.reconnect-delay={RECONNECT_DELAY}" if socket_path else ""
    return f"{device}{uri}"

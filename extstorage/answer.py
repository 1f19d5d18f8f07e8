# SPDX-License-Identifier: BSD-2-Clause
"""What attach prints: the block device on the first line, then URIs. No newline at the end: Ganeti would count it.

Light: attach of an attached volume imports this and little else.
"""

from __future__ import annotations

import os

#: One directory for each attached volume; the socket paths are the same on all nodes, as live migration needs it.
RUN = "/run/snf-archipelago"

#: The same for block devices. Only root may write here: the paths below it are given to losetup.
DEVICES = "/run/snf-archipelago-device"

#: In a volume's directory: why its server can't serve it.
FAULT_FILE = "fault"

#: Seconds that QEMU keeps trying while the server restarts. It rides on the URI: Ganeti 3.0 hands that on as it is.
RECONNECT_DELAY = 30


def is_serving(directory: str) -> bool:
    """Whether the server of the volume with this directory under /run is alive: the kernel says so."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(f"{directory}/control.sock")
        except OSError:
            return False
    return os.path.exists(f"{directory}/nbd.sock")


def is_faulty(directory: str) -> bool:
    """Whether that server has found no volume to serve, and answers every request with an error."""
    return os.path.exists(f"{directory}/{FAULT_FILE}")


def device_of(directory: str, server_directory: str) -> str:
    """The block device that shows the volume, or "". The kernel is asked whether it still is that volume's (L14)."""
    number = _recorded(f"{directory}/nbd")
    if number and is_nbd_of(f"{server_directory}/nbd.sock", number):
        return f"/dev/nbd{number}"
    number = _recorded(f"{directory}/loop")
    return f"/dev/loop{number}" if number and is_loop_of(directory, number) else ""


def _recorded(path: str) -> int:
    """Ganeti takes minor 0 for none, so there is no device of that number."""
    try:
        with open(path, encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return 0


def is_nbd_of(socket_path: str, number: int) -> bool:
    """Whether a device of the kernel's NBD client was made for the volume whose server has this socket."""
    return _says(f"/sys/block/nbd{number}/backend", socket_path) and os.path.exists(f"/dev/nbd{number}")


def is_loop_of(directory: str, number: int) -> bool:
    """Whether a loop device stands on the volume's file."""
    backing = f"/sys/block/loop{number}/loop/backing_file"
    return _says(backing, f"{directory}/disk") and os.path.exists(f"/dev/loop{number}")


def _says(path: str, text: str) -> bool:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read().rstrip("\n") == text
    except OSError:
        return False


def text(device: str, socket_path: str) -> str:
    """The output of attach; `socket_path` is empty when no URI is wanted."""
    uri = f"\nkvm:nbd+unix:///?socket={socket_path},file.reconnect-delay={RECONNECT_DELAY}" if socket_path else ""
    return f"{device}{uri}"

# SPDX-License-Identifier: BSD-2-Clause
"""Runs inside the sandbox of the helper VM: takes open files from the host, starts QEMU with them, ends it with us.

The sandbox shows QEMU no file of the node, so disks and channels come as descriptors over the control socket, which is
standard input (SCM_RIGHTS). That socket is also the leash: when the host's process dies, for whatever reason, it closes
and QEMU is killed at once (threat V07). Standard library only, and started with -I -S: it sees nothing else.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import sys

#: Bytes of the order, and descriptors that may come with it.
ORDER_LIMIT = 64 * 1024
FDS_LIMIT = 80

#: Exit status when the order is malformed or the host has gone.
FAILED = 69


def receive(control: socket.socket) -> tuple[list[str], list[int]]:
    """The command and its descriptors. `%fdN%` in the command stands for the number of descriptor N."""
    data, fds, _flags, _address = socket.recv_fds(control, ORDER_LIMIT, FDS_LIMIT)
    if not data:
        raise EOFError
    words = json.loads(data)
    return [re.sub(r"%fd([0-9]+)%", lambda match: str(fds[int(match[1])]), word) for word in words], fds


def start(command: list[str], fds: list[int]) -> int:
    """Start the command in a child that has the descriptors and nothing on its standard input."""
    child = os.fork()
    if child:
        for fd in fds:
            os.close(fd)
        return child
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for fd in fds:
            os.set_inheritable(fd, True)
        os.execv(command[0], command)  # noqa: S606 - a list of arguments, no shell
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(FAILED)


def follow(child: int, control: socket.socket) -> int:
    """Wait for the child; kill it when the host goes. Returns an exit status as a shell has it."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(control, select.POLLIN | select.POLLHUP)
    ready = {fd for fd, _ in poll.poll()}
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return FAILED
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> int:
    control = socket.socket(fileno=0)
    try:
        command, fds = receive(control)
    except (EOFError, OSError, ValueError, IndexError):
        return FAILED
    return follow(start(command, fds), control)


if __name__ == "__main__":
    sys.exit(main())

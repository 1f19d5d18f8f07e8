# SPDX-License-Identifier: BSD-2-Clause
"""What Ganeti runs as a provider's script: has the action done by a fork of the server, which has everything loaded.

Half of the time of an action, and most of its CPU time, would go into loading modules and librados. A fork has them at
once, and is given everything else that makes a process this one. Nothing depends on the server: where it can't be
reached, refuses, or dies, the action is done here. Every action may be repeated, also one that a fork has begun.

Imports nothing that isn't there when Python has started, not even `socket` and `signal`: they cost more than the rest.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys

from ganeti_plugin.contract import handover

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Of systemd's socket unit.
SOCKET = "/run/snf-archipelago-actions.sock"

#: Seconds until a server that says nothing is done without. The first call waits for it to be loaded.
DEADLINE = 2.0

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: What the kernel shows a process; a fork must see the same machine as this one.
_NAMESPACES = ("mnt", "net", "pid")

_FORWARDED = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM)


def run() -> NoReturn:
    """Have the action done, or do it, and end with its exit status."""
    status = _by_a_fork()
    if status is not None:
        os._exit(status)
    from extstorage.actions import main
    from ganeti_plugin.entry import end, guarded

    end(guarded("archipelago", main))


def where() -> list[bytes]:
    """Whose code this is, and in which namespaces it runs: client and server must agree."""
    return [os.fsencode(TREE), *(os.fsencode(os.readlink(f"/proc/self/ns/{name}")) for name in _NAMESPACES)]


def _by_a_fork() -> int | None:
    """The exit status; None when the action is to be done here."""
    fork = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    signals: list[int] = []
    handlers = {number: _signal.getsignal(number) for number in _FORWARDED}
    try:
        fork.settimeout(DEADLINE)
        fork.connect(SOCKET)
        if not fork.recv(1):
            return None
        _hand_over(fork)  # now, for what waits for a server that hangs would keep our output open
        if not fork.recv(1):
            return None
        fork.settimeout(None)
        _forward_signals(fork, signals)
        answer = fork.recv(1)
    except OSError:
        answer = b""
    finally:
        fork.close()
        for number, handler in handlers.items():
            _signal.signal(number, handler)
    if answer:
        return answer[0]
    return 128 + signals[0] if signals else None


def _hand_over(fork: _socket.socket) -> None:
    """All that makes a process of this one: where, name, umask, variables; open files and working directory."""
    umask = os.umask(0)
    os.umask(umask)
    directory = os.open(".", os.O_PATH)
    request = b"\0".join([*where(), os.fsencode(sys.argv[0]), b"%d" % umask, *handover.variables()])
    numbers = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2, directory))
    try:
        fork.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)])
    finally:
        os.close(directory)


def _forward_signals(fork: _socket.socket, signals: list[int]) -> None:
    """The fork ends itself cleanly, and its status says so; it ends, too, if this process is killed."""

    def forward(number: int, _frame: object) -> None:
        signals.append(number)
        fork.send(bytes([number]))

    for number in _FORWARDED:
        _signal.signal(number, forward)

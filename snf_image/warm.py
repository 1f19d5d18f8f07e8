# SPDX-License-Identifier: BSD-2-Clause
"""A helper VM that is already up: its state, saved once when the helper is built, is restored for each run.

The state is pristine. It is taken when the guest has loaded its drivers and its program and is about to say hello, with
no host at the other end of its channel and no disk: it has never seen an image, a request or a secret, and it is never
written back (threat V10). A run restores it from a read-only descriptor, with its own disks on the command line; the
guest looks for them on its PCI bus when the request names them, and takes clock and random seed from the request. What
all runs share is the layout of memory in one process that lives for a second.

A saved state belongs to one machine: the key is made of QEMU's program file and every word of its command. Others
boot cold. No monitor is needed to restore: the sandbox stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ganeti_plugin.errors import StateError
from ganeti_plugin.run import spawn

STATE = "state"

#: What the guest prints when it is ready (helper/main.py).
READY = b"snf-image-helper: ready"

#: Seconds for the guest to come up, and for its state to be written.
BOOT_TIMEOUT = 120.0
SAVE_TIMEOUT = 120.0

#: Seconds between the guest's word and the state: it is then asleep, waiting for a host.
SETTLE = 0.3

_LIMIT = 64 * 1024


class SaveError(StateError):
    template = "the state of the helper VM cannot be saved: {message}"
    hint = "it will boot for each run instead"


def key(command: Sequence[str]) -> str:
    """What a state must have been made with: `command` is the machine's, without disks; its first word is QEMU."""
    status = os.stat(command[0])
    facts = [*command, str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def save(command: Sequence[str], path: Path) -> None:
    """Boot the machine of `command` until it is ready and write its state to `path`.

    `%fd0%` in the command stands for the channel, which nobody will connect to, and `%fd1%` for the console.
    """
    with contextlib.ExitStack() as stack:
        # Root's own folder: nobody else can become the channel's other end and talk to the guest.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="snf-image-"))
        console, console_inside = _pair(stack)
        control, control_inside = _pair(stack)
        words = [_unconnected(word, folder).replace("%fd1%", str(console_inside.fileno())) for word in command]
        words += ["-chardev", f"socket,id=control,fd={control_inside.fileno()}", "-mon", "chardev=control,mode=control"]
        process = stack.enter_context(_running(words, [console_inside.fileno(), control_inside.fileno()]))
        console_inside.close()
        control_inside.close()
        _wait_until_ready(console, process)
        time.sleep(SETTLE)
        with path.open("wb") as output:
            _Monitor(control).migrate(output.fileno())
            os.fsync(output.fileno())


def _unconnected(word: str, folder: str) -> str:
    """The channel's backend without a peer: the guest's hello waits, and with it the whole program."""
    if word == "socket,id=channel,fd=%fd0%":
        return f"socket,id=channel,path={folder}/channel,server=on,wait=off"
    return word


def _pair(stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    for end in pair:
        stack.enter_context(end)
    return pair


@contextlib.contextmanager
def _running(words: Sequence[str], inherited: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn(words, pass_fds=inherited)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(console: socket.socket, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + BOOT_TIMEOUT
    seen = b""
    while READY not in seen:
        ready, _, _ = select.select([console], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise SaveError(message=f"it is not ready after {BOOT_TIMEOUT:g} seconds")
        data = console.recv(4096)
        if not data:
            raise SaveError(message=f"QEMU ended with status {process.wait(10)}")
        seen = (seen + data)[-_LIMIT:]


class _Monitor:
    """The few words of QMP that saving needs."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.settimeout(SAVE_TIMEOUT)
        self._lines = control.makefile("rb")

    def migrate(self, output: int) -> None:
        """Write the state to a descriptor; returns when it is complete."""
        self._lines.readline(_LIMIT)  # the greeting
        self._call("qmp_capabilities")
        self._call("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        self._call("getfd", {"fdname": "state"}, [output])
        self._call("migrate", {"uri": "fd:state"})
        deadline = time.monotonic() + SAVE_TIMEOUT
        while (status := self._status()) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise SaveError(message=f"QEMU says: {status}")
            time.sleep(0.05)

    def _status(self) -> str:
        value = self._call("query-migrate")
        return str(value.get("status", "none")) if isinstance(value, dict) else "none"

    def _call(self, name: str, arguments: dict[str, object] | None = None, fds: Sequence[int] = ()) -> object:
        order = json.dumps({"execute": name, **({"arguments": arguments} if arguments else {})}).encode()
        try:
            socket.send_fds(self._control, [order], list(fds))
            while line := self._lines.readline(_LIMIT):
                answer = json.loads(line)
                if "error" in answer:
                    raise SaveError(message=str(answer["error"].get("desc", name)))
                if "return" in answer:
                    found: object = answer["return"]
                    return found
        except (OSError, ValueError) as error:
            raise SaveError(message=f"no answer to {name}: {error}") from error
        raise SaveError(message=f"QEMU ended instead of answering {name}")

# SPDX-License-Identifier: BSD-2-Clause
"""A volume behind nbdkit, asked through libnbd and the control socket; it can be used where a session can."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import nbd

from extstorage import answer, control, servers
from extstorage.errors import HeldError, NotOpenError, ReadOnlyError, ServerError
from extstorage.session import Session
from extstorage.store import Info
from extstorage.volume import Extent

START = 30.0
CONNECTIONS = 3


def connected(socket: Path) -> nbd.NBD:
    """A client that sends what it is told. libnbd 1.22 keeps below what the server wishes for; the kernel does not."""
    client = nbd.NBD()
    client.set_strict_mode(client.get_strict_mode() & ~getattr(nbd, "STRICT_PAYLOAD", 0))
    client.add_meta_context("base:allocation")
    client.connect_unix(str(socket))
    return client


class RefusedError(HeldError, NotOpenError, ReadOnlyError):
    """NBD has one number for all of them."""

    template = "refused: {reason}"


class NbdSession(Session):
    """A session in another process. Nothing of the real one is used but its type."""

    def __init__(self, spec: str, name: str, run: Path) -> None:
        self._spec = spec
        self._name = name
        self._directory = run
        self._random = random.Random(name)
        self._clients: list[nbd.NBD] = []
        self._lock = None
        self._start()

    def _start(self) -> None:
        socket = self._directory / "nbd.sock"
        for leftover in (socket, self._directory / control.SOCKET):
            leftover.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                *("nbdkit", "-f", "--unix", socket, *servers.plugin()),
                *(f"volume={self._name}", f"store={self._spec}", f"run={self._directory}"),
            ],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START
        while not answer.is_serving(str(self._directory)):
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)

    def connect(self) -> nbd.NBD:
        return connected(self._directory / "nbd.sock")

    @property
    def _client(self) -> nbd.NBD:
        while len(self._clients) < CONNECTIONS:
            self._clients.append(self.connect())
        return self._random.choice(self._clients)

    def _hang_up(self) -> None:
        for client in self._clients:
            client.shutdown()
        self._clients.clear()

    def call(self, command: str, **arguments: object) -> dict[str, object]:
        return dict(control.call(self._directory, self._name, command, **arguments))

    @property
    def size(self) -> int:
        return int(self._client.get_size())

    @property
    def holds_lock(self) -> bool:
        return bool(self.call("status")["writer"])

    # Requests.

    def readinto(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._client.pread(len(buffer), offset)

    def write(self, data: memoryview, offset: int) -> None:
        flags = nbd.CMD_FLAG_FUA if self._random.random() < 0.05 else 0
        try:
            self._client.pwrite(bytes(data), offset, flags)
        except nbd.Error as error:
            if error.errno in ("EPERM", "EROFS", "ESHUTDOWN"):
                raise RefusedError(name=self._name, reason=str(error)) from None
            raise

    def zero(self, offset: int, length: int) -> None:
        self._client.zero(length, offset)

    def discard(self, offset: int, length: int) -> None:
        self._client.trim(length, offset)

    def flush(self) -> None:
        self._client.flush()

    def extents(self, offset: int, length: int) -> list[Extent]:
        found: list[Extent] = []

        def keep(_context: str, _offset: int, entries: list[int], _error: object) -> int:
            pairs = zip(entries[::2], entries[1::2], strict=True)
            found.extend(Extent(size, flags == nbd.STATE_HOLE | nbd.STATE_ZERO) for size, flags in pairs)
            return 0

        self._client.block_status(length, offset, keep)
        return found

    # What Ganeti asks for.

    def open(self, exclusive: bool) -> None:
        self.call("open", exclusive=exclusive)

    def close(self) -> None:
        self.call("close")

    def resume(self) -> None:
        """The server has done it."""

    def poll(self) -> None:
        """The server does it."""

    def snapshot(self, name: str, facts: Info | None = None) -> None:
        self.call("snapshot", name=name, facts=facts._asdict() if facts else None)

    def grow(self, size: int) -> None:
        self.call("grow", size=size)
        self._hang_up()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._clients.clear()

    def shutdown(self) -> None:
        self._hang_up()
        self.process.terminate()
        try:
            status = self.process.wait(START)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(name=self._name, message="it does not end") from None
        assert status == control.REPLACED, f"the server ended with {status}"

# SPDX-License-Identifier: BSD-2-Clause
"""Runs the helper VM once: starts it confined, talks to it, and believes it only after a clean end.

Owns the confined process: it is killed and reaped on every way out of `run_helper`, and by its leash (launcher.py)
should this process die without a chance to do so.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ganeti_plugin import log
from ganeti_plugin.errors import StateError
from snf_image import machine
from snf_image.confined import Confined, confined
from snf_image.console import Console
from snf_image.conversation import Conversation, HelperError, Outcome, State
from snf_image.machine import Machine
from snf_image.protocol import Hello, Reply, Request, encode
from snf_image.sandbox import Limits, Sandbox
from snf_image.targets import Target

#: MiB that QEMU needs beside the guest's memory.
_OVERHEAD = 320

#: Seconds for a VM to end after it has said its last word, and for the sandbox to be cleared away.
_END_TIMEOUT = 15.0

#: Bytes of QEMU's own complaints that are kept.
_COMPLAINT_LIMIT = 4096

#: Seconds for a restored VM to say hello; it takes less than one.
RESTORE_TIMEOUT = 20.0

Report = Callable[[Reply], None]


class DeadlineError(StateError):
    template = "the helper VM did not end within {seconds:g} seconds (it was {doing})"
    hint = "raise helper_timeout in [image] if this node is slow"


class NotRestoredError(StateError):
    template = "the helper VM was not restored from its saved state: {reason}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a helper VM runs: folder and arguments of the helper, MiB, seconds; a saved state's descriptor, or none."""

    machine: Machine
    sandbox: Sandbox
    seconds: float
    state: int | None = None


def limits(memory: int, seconds: int) -> Limits:
    """The bounds of a sandbox whose guest has `memory` MiB."""
    return Limits(memory=memory + machine.CODE_CACHE + _OVERHEAD, seconds=seconds)


def run_helper(chosen: Settings, targets: Sequence[Target], request: Request, report: Report) -> Outcome:
    """Customize the disks. Returns only after success was proved; raises otherwise, with nothing left running."""
    fds = [target.fd for target in targets]
    if chosen.state is not None:
        fds.append(chosen.state)
    conversation = Conversation(request.nonce)
    with started(chosen, fds) as process:
        session = _Session(process, chosen.seconds, conversation)
        if chosen.state is not None:
            session.expect_hello_within(RESTORE_TIMEOUT)
        try:
            session.follow(request, report)
            return session.outcome()
        except StateError as error:
            if chosen.state is not None and conversation.state is State.BOOTING:
                raise NotRestoredError(reason=str(error)) from error
            raise


def wait_for_hello(chosen: Settings) -> bool:
    """Whether a VM without disks comes up in time: the proof that its acceleration works."""
    try:
        with started(chosen, []) as process:
            return _Session(process, chosen.seconds, Conversation("00" * 8)).wait_for_hello()
    except StateError as error:
        log.info("no helper VM under KVM: %s", error)
        return False


@dataclass(frozen=True, kw_only=True)
class Process:
    """The confined QEMU and our ends of the channels."""

    cage: Confined
    channel: socket.socket
    console: socket.socket


@contextmanager
def started(chosen: Settings, fds: Sequence[int]) -> Iterator[Process]:
    """QEMU in its sandbox, with the descriptors of the disks; killed at the end if it still runs."""
    channel, channel_inside = _pair()
    console, console_inside = _pair()
    with channel, console, channel_inside, console_inside:
        given = [channel_inside.fileno(), console_inside.fileno(), *fds]
        with confined(chosen.sandbox, machine.command(chosen.machine), given) as cage:
            channel_inside.close()
            console_inside.close()
            yield Process(cage=cage, channel=channel, console=console)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


class _Session:
    """One run of the VM as a loop over its channel, its console and QEMU's complaints."""

    def __init__(self, process: Process, seconds: float, conversation: Conversation) -> None:
        self._process = process
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._conversation = conversation
        self._console = Console()
        self._hello_deadline = self._deadline
        self._complaints = bytearray()
        self._outgoing = b""
        self._selector = selectors.DefaultSelector()
        for link in (process.channel, process.console):
            link.setblocking(False)
        self._selector.register(process.channel, selectors.EVENT_READ, self._on_channel)
        self._selector.register(process.console, selectors.EVENT_READ, self._on_console)
        self._selector.register(process.cage.output, selectors.EVENT_READ, self._on_complaints)
        self._replies: list[Reply] = []

    def expect_hello_within(self, seconds: float) -> None:
        self._hello_deadline = min(self._hello_deadline, time.monotonic() + seconds)

    def follow(self, request: Request, report: Report) -> None:
        """Until the VM has closed everything, that is: until it has ended."""
        try:
            while self._selector.get_map():
                for reply in self._turn():
                    if isinstance(reply, Hello):
                        self._send(encode(request))
                    report(reply)
        except StateError:
            self._console.finish()
            raise
        finally:
            self._selector.close()
        self._console.finish()

    def wait_for_hello(self) -> bool:
        while self._selector.get_map():
            if any(isinstance(reply, Hello) for reply in self._turn()):
                return True
        self.outcome()  # raises, with the reason why it ended so soon
        return False

    def outcome(self) -> Outcome:
        """What the run came to. A complaint of QEMU, or an end that is not clean, is no success (V04)."""
        try:
            status = self._process.cage.popen.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise HelperError(reason="closed its channels but does not end") from None
        if status:
            complaint = log.escape(self._complaints.decode("utf-8", "replace").strip())[-400:]
            raise HelperError(reason=f"ended with status {status}: {complaint or 'QEMU gave no reason'}")
        return self._conversation.outcome()

    def _turn(self) -> list[Reply]:
        is_booting = self._conversation.state is State.BOOTING
        left = (self._hello_deadline if is_booting else self._deadline) - time.monotonic()
        if left <= 0:
            raise DeadlineError(seconds=self._seconds, doing=self._conversation.state)
        self._replies = []
        for key, events in self._selector.select(min(left, 1.0)):
            key.data(events)
        return self._replies

    def _send(self, data: bytes) -> None:
        self._outgoing += data
        self._selector.modify(self._process.channel, selectors.EVENT_READ | selectors.EVENT_WRITE, self._on_channel)

    def _on_channel(self, events: int) -> None:
        channel = self._process.channel
        if events & selectors.EVENT_WRITE and self._outgoing:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._outgoing = self._outgoing[channel.send(self._outgoing) :]
            if not self._outgoing:
                self._selector.modify(channel, selectors.EVENT_READ, self._on_channel)
        if events & selectors.EVENT_READ:
            data = _receive(channel)
            if data == b"":
                self._selector.unregister(channel)
            elif data:
                self._replies += self._conversation.feed(data)

    def _on_console(self, _events: int) -> None:
        data = _receive(self._process.console)
        if data == b"":
            self._selector.unregister(self._process.console)
        elif data:
            self._console.feed(data)

    def _on_complaints(self, _events: int) -> None:
        try:
            data = os.read(self._process.cage.output, 65536)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(self._process.cage.output)
        self._complaints += data[: max(0, _COMPLAINT_LIMIT - len(self._complaints))]


def _receive(link: socket.socket) -> bytes | None:
    """What has arrived; empty at the end, None when nothing has."""
    try:
        return link.recv(65536)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""

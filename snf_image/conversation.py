# SPDX-License-Identifier: BSD-2-Clause
"""The host's half of the talk with the helper VM: a state machine that believes nothing it does not have to.

hello, then (after the request was sent) task lines and warnings, then one result, then silence. Anything else, in any
other order or number, ends the run as failed (threats R4, V04). Pure: bytes in, what to do out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from ganeti_plugin.errors import StateError
from snf_image import protocol
from snf_image.protocol import Hello, Reply, Result, TaskEnd, TaskStart, TaskWarning


class HelperError(StateError):
    """The helper VM did not do its work; nothing can be said about the disk's content."""

    template = "the helper VM {reason}"


class TaskFailedError(StateError):
    """The helper says that a task failed; `message` is its word, made printable."""

    template = "the image could not be customized: {task}: {message}"


class State(StrEnum):
    BOOTING = "booting"
    WORKING = "working"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a successful run found and did, as the guest tells it: to be shown, not to be trusted."""

    facts: Mapping[str, str]


def printable(text: str) -> str:
    """Guest text as ASCII without control characters (threat V03)."""
    shown = text.encode("ascii", "backslashreplace").decode("ascii")
    return re.sub(r"[^ -~]", lambda match: f"\\x{ord(match[0]):02x}", shown)[:2000]


class Conversation:
    """Feed it what the guest sends. `outcome()` is asked after the VM has ended, and is success or an exception."""

    def __init__(self, nonce: str) -> None:
        self.state = State.BOOTING
        self._nonce = nonce
        self._frames = protocol.Frames()
        self._task: str | None = None
        self._result: Result | None = None

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are complete now, each checked against the state. Raises HelperError."""
        try:
            replies = [protocol.decode_reply(frame) for frame in self._frames.feed(data)]
        except protocol.ProtocolError as error:
            raise HelperError(reason=f"breaks the protocol: {printable(str(error))}") from None
        for reply in replies:
            self._accept(reply)
        return replies

    def _accept(self, reply: Reply) -> None:
        if self.state is State.DONE:
            raise HelperError(reason="goes on talking after its result")
        if isinstance(reply, Hello) is not (self.state is State.BOOTING):
            raise HelperError(reason="breaks the protocol: hello is not the first word, or is said twice")
        match reply:
            case Hello():
                self.state = State.WORKING
            case TaskStart():
                self._expect(self._task is None, "starts a task within another one")
                self._task = reply.task
            case TaskEnd():
                self._expect(self._task == reply.task, "ends a task that it did not start")
                self._task = None
            case TaskWarning():
                pass
            case Result():
                self._expect(reply.nonce == self._nonce, "answers another request")
                self._expect(not reply.ok or self._task is None, "claims success within a task")
                self.state = State.DONE
                self._result = reply

    @staticmethod
    def _expect(condition: bool, otherwise: str) -> None:
        if not condition:
            raise HelperError(reason=f"breaks the protocol: it {otherwise}")

    def outcome(self) -> Outcome:
        """Success only with a result that says so. The caller adds: and with a clean end of the VM."""
        result = self._result
        if result is None:
            during = f" (during task {self._task})" if self._task else f" (while {self.state})"
            raise HelperError(reason=f"ended without a result{during}")
        if not self._frames.is_empty():
            raise HelperError(reason="goes on talking after its result")
        if not result.ok:
            task, message = result.task or "helper", printable(result.message or "it gave no reason")
            raise TaskFailedError(task=task, message=message)
        facts = {name: printable(value) for name, value in result.facts.items()}
        return Outcome(facts=MappingProxyType(facts))

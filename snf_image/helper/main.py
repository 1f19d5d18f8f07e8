# SPDX-License-Identifier: BSD-2-Clause
"""Process 1 of the helper VM: say hello, take a request, run the tasks, answer, power off.

Everything before the hello is the same for every run and has seen no image: that is the state a host may save and
restore. What must differ from run to run (random numbers, the clock, the disks) comes with the request.
"""

from __future__ import annotations

import os
import time

from snf_image.helper import disks, modules, syscalls
from snf_image.helper.channel import Channel
from snf_image.helper.errors import TaskError
from snf_image.helper.properties import Properties
from snf_image.helper.runner import TaskFailure, run
from snf_image.helper.task import Context
from snf_image.helper.tasks import OPERATIONS
from snf_image.protocol import Hello, ProtocolError, Request, Result, TaskWarning

#: Characters of a reason or warning that are sent.
MESSAGE_LIMIT = 2000
WARNINGS_LIMIT = 100


def shown(text: str) -> str:
    """Text fit for a reply: printable, whole characters, bounded. Image content may be in it."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(each if each.isprintable() else " " for each in plain)[:MESSAGE_LIMIT]


def log(text: str) -> None:
    """A line for the console, which the host keeps in its log."""
    print(f"snf-image-helper: {shown(text)}", flush=True)


def prepare_system() -> None:
    """The kernel's own file systems and the drivers of the machine."""
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")):
        syscalls.mount(
            kind, target, kind, syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=0755" if kind == "tmpfs" else ""
        )
    modules.load("boot")


class Session:
    """One run of one request."""

    def __init__(self, channel: Channel, request: Request) -> None:
        self._channel = channel
        self._request = request
        self._task: str | None = None
        self._warnings = 0

    def warn(self, message: str) -> None:
        self._warnings += 1
        log(f"warning: {message}")
        if self._warnings <= WARNINGS_LIMIT:
            self._channel.send(TaskWarning(task=self._task, message=shown(message)))

    def _on_task(self, task: str | None) -> None:
        self._task = task

    def _work(self) -> dict[str, str]:
        request = self._request
        syscalls.add_entropy(bytes.fromhex(request.entropy))
        time.clock_settime(time.CLOCK_REALTIME, float(request.time))
        devices = disks.wait_for(request.disks, time.monotonic() + disks.WAIT)
        context = Context(request, Properties(request.properties, self.warn), devices, self.warn)
        run(OPERATIONS[request.operation], context, self._channel.send, self._on_task)
        return {name: shown(value) for name, value in context.facts.items()}

    def result(self) -> Result:
        nonce = self._request.nonce
        try:
            return Result(nonce=nonce, ok=True, facts=self._work())
        except TaskFailure as failure:
            return Result(nonce=nonce, ok=False, task=failure.task, message=shown(str(failure)))
        except TaskError as error:
            return Result(nonce=nonce, ok=False, message=shown(str(error)))
        except Exception as error:  # noqa: BLE001 - the outer wall of the guest
            log_traceback()
            text = f"internal error of the helper ({type(error).__name__}: {error})"
            return Result(nonce=nonce, ok=False, task=self._task, message=shown(text))


def log_traceback() -> None:
    import traceback

    for line in traceback.format_exc().splitlines():
        log(line)


def main() -> None:
    try:
        prepare_system()
        channel = Channel.open()
        # A state may be saved now: while no host is connected, the hello waits (snf_image/warm.py).
        log("ready")
        channel.send(Hello())
        try:
            request = channel.receive()
        except ProtocolError as error:
            log(f"the request is refused: {error}")
            return
        result = Session(channel, request).result()
        log("done" if result.ok else f"failed: {result.task}: {result.message}")
        os.sync()
        channel.send(result)
    except Exception:  # noqa: BLE001 - without a result the host knows that the run failed
        log_traceback()
    finally:
        syscalls.power_off()

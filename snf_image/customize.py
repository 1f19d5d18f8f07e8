# SPDX-License-Identifier: BSD-2-Clause
"""Has the helper VM customize an instance's disks: verifies it, chooses the machine, waits for a turn, reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ganeti_plugin import log
from ganeti_plugin.settings import Accel, Image
from snf_image import accel, builder, locks, vm
from snf_image.conversation import Outcome, printable
from snf_image.machine import Machine
from snf_image.monitor import HelperEvent, Monitor
from snf_image.protocol import Reply, Request, TaskEnd, TaskStart, TaskWarning
from snf_image.sandbox import Sandbox
from snf_image.targets import Target

#: Seconds to wait for a place among the helper VMs of this node. It does not count as running time (threat V13).
QUEUE_TIMEOUT = 3600.0


@dataclass(frozen=True, kw_only=True)
class Helper:
    """A verified helper: its folder, the kernel's arguments, and a name for this build."""

    settings: Image
    arguments: str
    build: str


def verified(settings: Image) -> Helper:
    """The helper's files, each with the digest that it was built with; raises when it is missing or changed."""
    manifest = builder.verify(settings.helper_directory)
    return Helper(settings=settings, arguments=manifest.arguments, build=manifest.initrd.sha256)


def customize(helper: Helper, targets: Sequence[Target], request: Request, monitor: Monitor) -> Outcome:
    """Run the request on the disks. Returns when everything is done and written; raises otherwise."""
    settings = helper.settings
    with locks.turn(settings.helper_parallel, QUEUE_TIMEOUT):
        chosen = accel.chosen(settings.accel, helper.build, lambda: _proof(helper))
        prepared = _prepared(helper, chosen, targets)
        outcome = vm.run_helper(prepared, targets, request, lambda reply: _report(monitor, reply))
    for name, value in sorted(outcome.facts.items()):
        log.info("image: %s: %s", name, value)
    return outcome


def _prepared(helper: Helper, chosen: Accel, targets: Sequence[Target]) -> vm.Settings:
    settings = helper.settings
    sandbox = Sandbox(
        name="helper",
        limits=vm.limits(settings.helper_memory, settings.helper_timeout),
        files=settings.helper_directory,
        accel=chosen,
    )
    machine = Machine(
        files=sandbox.files_inside(),
        arguments=helper.arguments,
        memory=settings.helper_memory,
        accel=chosen,
        disks=tuple(target.place for target in targets),
    )
    return vm.Settings(machine=machine, sandbox=sandbox, seconds=settings.helper_timeout)


def _proof(helper: Helper) -> bool:
    prepared = dataclasses.replace(_prepared(helper, Accel.KVM, ()), seconds=accel.PROOF_TIMEOUT)
    return vm.wait_for_hello(prepared)


def _report(monitor: Monitor, reply: Reply) -> None:
    match reply:
        case TaskStart():
            monitor.helper(HelperEvent.TASK_START, task=printable(reply.task))
        case TaskEnd():
            monitor.helper(HelperEvent.TASK_END, task=printable(reply.task))
        case TaskWarning():
            monitor.helper(HelperEvent.WARNING, task=reply.task, message=printable(reply.message))
        case _:
            pass

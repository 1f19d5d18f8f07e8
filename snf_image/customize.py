# SPDX-License-Identifier: BSD-2-Clause
"""Has the helper VM customize an instance's disks: verifies it, chooses the machine, waits for a turn, reports."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from ganeti_plugin import log
from ganeti_plugin.settings import Accel, Image
from snf_image import accel, builder, locks, vm
from snf_image.conversation import Outcome, printable
from snf_image.machine import Machine, command
from snf_image.monitor import HelperEvent, Monitor
from snf_image.protocol import Reply, Request, TaskEnd, TaskStart, TaskWarning
from snf_image.sandbox import Sandbox
from snf_image.targets import Target

#: Seconds to wait for a place among the helper VMs of this node. It does not count as running time (threat V13).
QUEUE_TIMEOUT = 3600.0


@dataclass(frozen=True, kw_only=True)
class Helper:
    """A verified helper: where it is, what was built, and a name for this build."""

    settings: Image
    manifest: builder.Manifest

    @property
    def build(self) -> str:
        return self.manifest.initrd.sha256


def verified(settings: Image) -> Helper:
    """The helper's files, each with the digest that it was built with; raises when it is missing or changed."""
    manifest = builder.verify(settings.helper_directory)
    return Helper(settings=settings, manifest=manifest)


def build(settings: Image) -> builder.Manifest:
    """Build the helper, and unless it is to run under KVM save its state, which this node's settings can restore."""
    if settings.accel is Accel.KVM:
        return builder.build(settings.helper_directory)
    return builder.build(settings.helper_directory, lambda arguments: _saved_machine(settings, arguments))


def _saved_machine(settings: Image, arguments: str) -> list[str]:
    """The command of the machine whose state is saved: emulated, without disks."""
    saved = Machine(
        files=settings.helper_directory, arguments=arguments, memory=settings.helper_memory, accel=Accel.TCG
    )
    return command(saved)


def customize(helper: Helper, targets: Sequence[Target], request: Request, monitor: Monitor) -> Outcome:
    """Run the request on the disks. Returns when everything is done and written; raises otherwise."""
    settings = helper.settings
    with locks.turn(settings.helper_parallel, QUEUE_TIMEOUT):
        chosen = accel.chosen(settings.accel, helper.build, lambda: _proof(helper))
        prepared = _prepared(helper, chosen, targets)
        outcome = _run(helper, prepared, targets, request, lambda reply: _report(monitor, reply))
    for name, value in sorted(outcome.facts.items()):
        log.info("image: %s: %s", name, value)
    return outcome


def _run(
    helper: Helper, prepared: vm.Settings, targets: Sequence[Target], request: Request, report: vm.Report
) -> Outcome:
    """Restore the saved state where there is one for this machine; boot where there is none, or it does not come up.

    Until its hello a VM was told nothing and has touched no disk: booting another one then is not a second try.
    """
    state = None
    if prepared.machine.accel is Accel.TCG:
        saved = _saved_machine(helper.settings, helper.manifest.arguments)
        state = builder.open_state(helper.settings.helper_directory, helper.manifest, saved)
    if state is not None:
        restored = dataclasses.replace(prepared.machine, is_restored=True)
        try:
            return vm.run_helper(dataclasses.replace(prepared, machine=restored, state=state), targets, request, report)
        except vm.NotRestoredError as error:
            log.warning("%s; it boots instead ('snf-image helper build' saves a new state)", error)
        finally:
            os.close(state)
    fresh = dataclasses.replace(prepared.sandbox, tag=secrets.token_hex(6))
    return vm.run_helper(dataclasses.replace(prepared, sandbox=fresh), targets, request, report)


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
        arguments=helper.manifest.arguments,
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

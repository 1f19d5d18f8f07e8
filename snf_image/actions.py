# SPDX-License-Identifier: BSD-2-Clause
"""What Ganeti asks of the OS definition: create, import, export, rename, verify. The program's name is the action."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from ganeti_plugin import config, log
from ganeti_plugin.contract.os import Action, OsCall, OsInstance, OsTransfer
from ganeti_plugin.errors import Error, InputError
from snf_image import customize, deploy, kept, locks, parameters, plan, source, targets, transfer
from snf_image.monitor import Monitor, monitor
from snf_image.parameters import Parameters
from snf_image.targets import Target


class DisksError(InputError):
    template = "instance {name}: {reason}"


def main() -> None:
    action = Action.from_name(Path(sys.argv[0]).name)
    _ACTIONS[action](OsCall.from_environment(action))


def _instance(call: OsCall) -> OsInstance:
    assert call.instance is not None
    return call.instance


def _create(call: OsCall) -> None:
    """Put the image on disk 0 unless it is there already, then have the disks customized."""
    instance = _instance(call)
    settings = config.load().image
    is_kept = parameters.takes_kept_properties(call.parameters) and bool(instance.disks)
    wanted = parameters.parse(call.parameters, kept.properties_of(instance.disks[0]) if is_kept else {})
    with monitor(settings.progress_monitor, instance.name) as progress:
        try:
            _fill(instance, wanted, progress)
        except Error as error:
            progress.error(str(error))
            raise


def _fill(instance: OsInstance, wanted: Parameters, progress: Monitor) -> None:
    settings = config.load().image
    if not instance.disks:
        raise DisksError(name=instance.name, reason="it has no disk to put an image on")
    request = plan.request(instance, wanted, settings)
    locks.refuse_running(instance.name)
    with ExitStack() as stack:
        image = stack.enter_context(source.opened(wanted.image, settings.image_directory))
        helper = customize.verified(settings)
        disks = _open_disks(stack, instance)
        if image is not None:
            deploy.deploy(image, disks[0], progress)
        customize.customize(helper, disks, request, progress)


def _open_disks(stack: ExitStack, instance: OsInstance) -> list[Target]:
    """All disks of the instance, opened and locked for this run."""
    disks = [stack.enter_context(targets.opened(targets.place_of(disk))) for disk in instance.disks]
    stack.enter_context(locks.disks(disks))
    return disks


def _transfer(call: OsCall) -> OsTransfer:
    assert call.transfer is not None
    return call.transfer


def _export(call: OsCall) -> None:
    moved = _transfer(call)
    where = targets.place(moved.index, moved.path, moved.uri)
    with targets.opened(where) as target:
        transfer.export_disk(target, os.dup(sys.stdout.fileno()), moved.size_fd)


def _import(call: OsCall) -> None:
    moved = _transfer(call)
    where = targets.place(moved.index, moved.path, moved.uri)
    locks.refuse_running(_instance(call).name)
    with targets.opened(where) as target, locks.disks([target]):
        transfer.import_disk(target, os.dup(sys.stdin.fileno()))


def _rename(call: OsCall) -> None:
    """The guest keeps the name it knows: nothing on the disk changes, as in the original."""
    instance = _instance(call)
    log.info("instance %s was %s; the system on its disks is left as it is", instance.name, instance.old_name)


def _verify(call: OsCall) -> None:
    if sys.argv[1:] not in ([], ["parameters"]):
        raise InputError(message=f"verify: {sys.argv[1][:40]!r} is not something that can be verified; parameters is")
    wanted = parameters.parse(call.parameters)
    # Ganeti keeps an instance whose create fails, disks included: what can be known of the image is said before.
    with source.opened(wanted.image, config.load().image.image_directory):
        pass


_ACTIONS: Mapping[Action, Callable[[OsCall], None]] = {
    Action.CREATE: _create,
    Action.IMPORT: _import,
    Action.EXPORT: _export,
    Action.RENAME: _rename,
    Action.VERIFY: _verify,
}

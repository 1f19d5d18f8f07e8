# SPDX-License-Identifier: BSD-2-Clause
"""What an ExtStorage script does: request -> plan -> apply -> answer. The name it was called by is the action.

Imports are kept out of the top: `attach` of an attached volume, which Ganeti runs seven times for one disk, ends after
two looks at /run.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from extstorage import answer
from ganeti_plugin.contract.extstorage import Action, ExtStorageCall

if TYPE_CHECKING:
    from extstorage.plan import AttachPlan


def main() -> int:
    """Run the action for the volume that the environment describes."""
    call = ExtStorageCall.from_environment(os.path.basename(sys.argv[0]))
    if call.action is Action.ATTACH:
        sys.stdout.write(_attach(call))
    else:
        _act(call)
    return 0


def _attach(call: ExtStorageCall) -> str:
    from extstorage import plan

    wanted = plan.plan_attach(call)
    directory = f"{answer.RUN}/{wanted.volume}"
    shown = wanted.device is not plan.Device.NONE
    device = answer.device_of(f"{answer.DEVICES}/{wanted.volume}", directory) if shown else ""
    if answer.is_serving(directory) and not answer.is_faulty(directory) and (device or not shown):
        return answer.text(device, f"{directory}/nbd.sock" if wanted.uri else "")
    return _attach_somehow(wanted, f"{directory}/nbd.sock")


def _attach_somehow(wanted: AttachPlan, socket: str) -> str:
    """Ganeti takes a failing attach for a volume that is gone, and removes its disk but never the volume.

    So whatever is wrong with this node is left to `open` to say: only a volume that is in no store is not attached.
    """
    from extstorage import apply
    from extstorage.errors import NoSuchVolumeError
    from ganeti_plugin.errors import Error
    from ganeti_plugin.log import warning

    try:
        return apply.attach(apply.site(), wanted)
    except NoSuchVolumeError:
        raise
    except (Error, OSError) as error:
        warning("%s; the volume can only be detached and removed", error)
        return answer.text("", socket)


def _act(call: ExtStorageCall) -> None:
    from extstorage import apply, plan

    site = apply.site()
    action = call.action
    store = plan.store_of(call)
    if action is Action.CREATE:
        apply.create(site, plan.plan_create(call))
    elif action is Action.DETACH or (action is Action.REMOVE and plan.is_kept(call)):
        apply.detach(site, call.volume)
    elif action is Action.REMOVE:
        apply.remove(site, call.volume, store)
    elif action is Action.GROW:
        apply.grow(site, plan.plan_grow(call))
    elif action is Action.SNAPSHOT:
        apply.snapshot(site, plan.plan_snapshot(call))
    elif action is Action.OPEN:
        apply.check_device(site, plan.plan_attach(call))
        apply.open_volume(site, call.volume, bool(call.exclusive), store)
    elif action is Action.CLOSE:
        apply.close_volume(site, call.volume)
    elif action is Action.SETINFO:
        apply.set_metadata(site, call.volume, call.metadata or "", store)
    else:
        apply.verify(site, call.volume, store)

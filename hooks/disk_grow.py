# SPDX-License-Identifier: BSD-2-Clause
"""Lets a running guest see that its disk has grown: Ganeti 3.0 tells only the storage."""

from __future__ import annotations

from ganeti_plugin.contract.hook import HookCall
from ganeti_plugin.errors import Error
from ganeti_plugin.log import warning
from hooks import archipelago


def react(call: HookCall | None) -> None:
    """For each volume of ours that the instance has; only the node where it runs finds something to do.

    One that can't be shown keeps no other from being shown.
    """
    if call is None or call.instance is None or not archipelago.is_installed():
        return
    from extstorage import apply, guests

    failed: Error | None = None
    for disk in call.disks:
        if disk.provider in archipelago.PROVIDERS:
            try:
                guests.show_size(apply.site(), call.instance, disk.uuid, disk.volume)
            except Error as error:
                warning("%s: %s", disk.volume, error)
                failed = error
    if failed is not None:
        raise failed

# SPDX-License-Identifier: BSD-2-Clause
"""Makes an image of a machine's disk: the helper VM removes what is that machine's alone (threat H43).

The disk must be a copy, or one that no instance uses any more: the machine would not know itself again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from ganeti_plugin.settings import Image
from snf_image import customize, locks, plan, targets
from snf_image.monitor import HelperEvent, Monitor
from snf_image.targets import Place


class Progress(Monitor):
    """A line for each task, for the person who waits."""

    def helper(self, event: HelperEvent, *, task: str | None = None, message: str | None = None) -> None:
        if event is HelperEvent.TASK_START:
            print(task, file=sys.stderr, flush=True)
        elif event is HelperEvent.WARNING:
            print(f"warning: {message}", file=sys.stderr, flush=True)


def place_of(disk: str) -> Place:
    """A block device or file by its path, or a local NBD server by its URI."""
    return targets.place(0, disk, None) if disk.startswith("/") else targets.place(0, None, disk)


def generalize(settings: Image, disk: str, root_partition: int | None, *, keep_logins: bool) -> Mapping[str, str]:
    """Returns what was found and removed, when everything is written; raises otherwise."""
    request = plan.generalize_request(root_partition, keep_logins=keep_logins)
    helper = customize.verified(settings)
    with targets.opened(place_of(disk)) as target, locks.disks([target]):
        return customize.customize(helper, [target], request, Progress()).facts

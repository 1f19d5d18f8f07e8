# SPDX-License-Identifier: BSD-2-Clause
"""The properties that the disk's provider keeps beside the image that the disk is a clone of.

The provider is asked by its command, for extstorage and snf_image know nothing of each other: docs/architecture.md
tells the contract. What it answers is checked like a parameter that a user gave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.contract.os import OsDisk
from ganeti_plugin.errors import StateError
from ganeti_plugin.run import run

PROVIDER = Path("/usr/bin/archipelago")

#: Exit status of a provider that has nothing to do with a disk.
_NOT_ITS_DISK = 2


class AnswerError(StateError):
    template = "what {provider} says about disk {index} is no JSON object of texts"


def properties_of(disk: OsDisk) -> Mapping[str, str]:
    """What is kept beside the image of a disk; nothing when its provider keeps none."""
    if not PROVIDER.exists():
        return {}
    place = disk.uri or disk.path
    assert place is not None
    done = run([PROVIDER, "volume", "properties", "--json", place], allowed=(0, _NOT_ITS_DISK))
    if done.returncode == _NOT_ITS_DISK:
        return {}
    found = _decoded(done.stdout, disk.index)
    if found:
        log.info("the image of disk %d brings the properties %s", disk.index, ", ".join(sorted(found)))
    return found


def _decoded(data: bytes, index: int) -> Mapping[str, str]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise AnswerError(provider=PROVIDER, index=index)
    return found

# SPDX-License-Identifier: BSD-2-Clause
"""Refuses `gnt-instance modify -t` where Ganeti would lose the content of the disks.

It copies them with dd(1) by the paths of their block devices. A volume that has only a URI has no path: Ganeti (3.0.2:
BlockdevConvert in backend.py, Import and Export in storage/base.py) then writes into a file named None, or reads one,
takes that for success, and removes the old disks. Which disks will have a path is known before: from the cluster's
configuration and from the job, both of which Ganeti keeps as JSON on all master candidates, the master among them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ganeti_plugin.contract.hook import HookCall
from ganeti_plugin.errors import StateError
from hooks import archipelago

#: Values of the disk parameter `device` that mean a block device whatever the access is.
WITH_PATH = ("nbd", "loop")

OVER = ("success", "error", "canceled")


class NoPathError(StateError):
    template = "{disk} has no block device on its node, and without one Ganeti loses what is on it when it converts it"
    hint = "{advice}"


class NoJobError(StateError):
    template = "the job that converts the disks of {instance} can't be found in {queue}"
    hint = "without it nobody knows whether Ganeti would lose what is on them"


def react(call: HookCall | None) -> None:
    if call is None or call.new_template is None or call.instance is None:
        return
    try:
        configuration = json.loads((call.data / "config.data").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    for disk in _disks(configuration, call.instance):
        if not _has_path(disk["params"], configuration):
            number = disk["iv_name"].rpartition("/")[2]
            advice = f"for the time of the conversion: gnt-instance modify --disk {number}:modify,device=loop"
            raise NoPathError(disk=disk["iv_name"], advice=advice)
    if call.new_template == "ext" and not _has_path(_wanted(call.data / "queue", call.instance), configuration):
        raise NoPathError(disk="the new volume", advice="add device=loop (or nbd) to --ext-params")


def _disks(configuration: Mapping[str, Any], instance: str) -> Iterator[Mapping[str, Any]]:
    for found in configuration["instances"].values():
        if found["name"] == instance:
            yield from (configuration["disks"][uuid] for uuid in found["disks"])


def _has_path(parameters: Mapping[str, str], configuration: Mapping[str, Any]) -> bool:
    """Whether attach will answer with a block device; what is not ours is somebody else's to know."""
    if parameters.get("provider") not in archipelago.PROVIDERS or parameters.get("device") in WITH_PATH:
        return True
    places = [configuration["cluster"], *configuration["nodegroups"].values()]
    general = {place.get("diskparams", {}).get("ext", {}).get("access", "kernelspace") for place in places}
    return parameters.get("access", "userspace" if "userspace" in general else "kernelspace") == "kernelspace"


def _wanted(queue: Path, instance: str) -> Mapping[str, str]:
    """The parameters that the new disks get, from the newest job that does this."""
    for path in sorted(queue.glob("job-*"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            operations = json.loads(path.read_text(encoding="utf-8"))["ops"]
        except (OSError, ValueError):
            continue
        for operation in operations:
            given = operation["input"]
            is_meant = given.get("instance_name") == instance and given.get("disk_template") == "ext"
            if is_meant and operation["status"] not in OVER:
                found: Mapping[str, str] = given["ext_params"]
                return found
    raise NoJobError(instance=instance, queue=queue)

# SPDX-License-Identifier: BSD-2-Clause
"""A conversion in which Ganeti would lose the content of disks is refused, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ganeti_plugin.errors import StateError
from hooks import conversion, dispatch
from tests.unit.ganeti_plugin.contract.test_hook import STOP

INSTANCE = STOP["GANETI_INSTANCE_NAME"]
OURS = {"provider": "archipelago"}
BY_DEVICE = {**OURS, "device": "loop"}


class World:
    """What Ganeti has written down, and a call of the hook."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "queue").mkdir()
        self.jobs = 0
        self.write_configuration({})

    def write_configuration(self, disk: dict[str, str], *, access: str = "userspace", group: str = "") -> None:
        ext = {"ext": {"access": group}} if group else {}
        kind = "ext" if disk else "file"
        configuration = {
            "cluster": {"diskparams": {"ext": {"access": access}}},
            "nodegroups": {"g": {"diskparams": ext}},
            "instances": {"i": {"name": INSTANCE, "disks": ["d"]}},
            "disks": {
                "d": {"uuid": "d", "iv_name": "disk/0", "dev_type": kind, "params": disk},
                "other": {"uuid": "other", "iv_name": "disk/0", "dev_type": "ext", "params": OURS},
            },
        }
        (self.folder / "config.data").write_text(json.dumps(configuration))

    def add_job(self, template: str, instance: str = INSTANCE, status: str = "running", **parameters: str) -> None:
        self.jobs += 1
        code = {"OP_ID": "OP_INSTANCE_SET_PARAMS", "instance_name": instance, "disk_template": template}
        job = {"id": self.jobs, "ops": [{"input": {**code, "ext_params": parameters}, "status": status}]}
        (self.folder / "queue" / f"job-{self.jobs}").write_text(json.dumps(job))

    def call(self, monkeypatch: pytest.MonkeyPatch, template: str = "") -> None:
        given = {"GANETI_HOOKS_PATH": "instance-modify", "GANETI_HOOKS_PHASE": "pre"}
        given |= {"GANETI_DATA_DIR": str(self.folder), "GANETI_NEW_DISK_TEMPLATE": template}
        for name, value in {**STOP, **given}.items():
            monkeypatch.setenv(name, value)
        assert dispatch.main([]) == 0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize(
    "parameters", [OURS, {"provider": "vlmc"}, {**OURS, "device": "auto"}, {**OURS, "device": "none"}]
)
def test_to_a_volume_without_a_device(
    world: World, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str]
) -> None:
    world.add_job("ext", "another.example.org", **BY_DEVICE)
    world.add_job("ext", **parameters)
    world.add_job("ext", status="error", **BY_DEVICE)
    with pytest.raises(conversion.NoPathError, match="device=loop"):
        world.call(monkeypatch, "ext")


@pytest.mark.parametrize("parameters", [BY_DEVICE, {**OURS, "device": "nbd"}, {"provider": "other"}])
def test_to_a_volume_with_one_or_of_somebody_else(
    world: World, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str]
) -> None:
    world.add_job("ext", **parameters)
    world.call(monkeypatch, "ext")


@pytest.mark.parametrize("template", ["file", "ext"])
def test_from_a_volume_without_a_device(world: World, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    world.write_configuration(OURS)
    world.add_job(template, provider="other")
    with pytest.raises(conversion.NoPathError, match="disk/0"):
        world.call(monkeypatch, template)


@pytest.mark.parametrize("disk", [BY_DEVICE, {"provider": "other"}, {**OURS, "access": "kernelspace"}])
def test_from_a_volume_with_one_or_of_somebody_else(
    world: World, monkeypatch: pytest.MonkeyPatch, disk: dict[str, str]
) -> None:
    world.write_configuration(disk)
    world.add_job("file")
    world.call(monkeypatch, "file")


def test_where_all_volumes_have_devices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_job("ext", **OURS)
    world.write_configuration(OURS, access="kernelspace")
    world.call(monkeypatch, "ext")
    world.write_configuration(OURS, access="kernelspace", group="userspace")
    with pytest.raises(conversion.NoPathError):
        world.call(monkeypatch, "ext")
    world.write_configuration({**OURS, "access": "userspace"}, access="kernelspace")
    with pytest.raises(conversion.NoPathError):
        world.call(monkeypatch, "file")


def test_what_changes_no_template_reads_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.folder / "config.data").unlink()
    world.call(monkeypatch)


def test_a_node_that_is_no_master_candidate_says_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.folder / "config.data").unlink()
    world.call(monkeypatch, "ext")


def test_a_job_that_is_not_found_is_no_reason_to_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.folder / "queue" / "job-9").write_text("{")
    with pytest.raises(StateError, match="can't be found"):
        world.call(monkeypatch, "ext")

# SPDX-License-Identifier: BSD-2-Clause
"""Ganeti's environment becomes a plan, or one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from extstorage import answer, plan
from extstorage.errors import BadNameError, BadParameterError
from extstorage.names import check_name, check_size
from ganeti_plugin.contract.extstorage import Access, Action, ExtStorageCall
from ganeti_plugin.errors import InputError, MalformedVariableError, MissingVariableError

VOLUME = "11111111-2222-3333-4444-555555555555.ext.disk0"
PROVIDER = Path(__file__).parents[3] / "extstorage" / "archipelago"

COMMON = {"VOL_NAME": VOLUME, "VOL_UUID": "u", "EXTP_PROVIDER": "archipelago", "EXTP_ACCESS": "userspace", "PATH": "/"}
ENVIRONMENTS = {
    Action.CREATE: COMMON | {"VOL_SIZE": "1024"},
    Action.ATTACH: COMMON,
    Action.DETACH: COMMON,
    Action.REMOVE: COMMON,
    Action.GROW: COMMON | {"VOL_SIZE": "1024", "VOL_NEW_SIZE": "2048"},
    Action.SETINFO: COMMON | {"VOL_METADATA": "originstname+web1"},
    Action.VERIFY: COMMON,
    Action.SNAPSHOT: COMMON | {"VOL_SNAPSHOT_NAME": f"{VOLUME}.snap", "VOL_SNAPSHOT_SIZE": "1024"},
    Action.OPEN: COMMON | {"VOL_OPEN_EXCLUSIVE": "True"},
    Action.CLOSE: COMMON,
}
REQUIRED = [
    (action, name)
    for action, environment in ENVIRONMENTS.items()
    for name in environment
    if name.startswith("VOL_") and name != "VOL_UUID"
]


def call(action: Action, **extra: str) -> ExtStorageCall:
    return ExtStorageCall.from_environment(action.value, ENVIRONMENTS[action] | extra)


def test_every_action_is_a_link_to_the_executable() -> None:
    assert {path.name for path in PROVIDER.iterdir()} == {*Action, "parameters.list"}
    for action in Action:
        path = PROVIDER / action
        assert path.is_symlink()
        assert path.resolve() == PROVIDER.parents[1] / "ganeti-extstorage"


def test_parameters_list_says_what_is_accepted() -> None:
    lines = (PROVIDER / "parameters.list").read_text().splitlines()
    assert lines == [f"{name} {text}" for name, text in plan.PARAMETERS.items()]


@pytest.mark.parametrize(("action", "name"), REQUIRED)
def test_a_missing_variable_is_named(action: Action, name: str) -> None:
    environment = {key: value for key, value in ENVIRONMENTS[action].items() if key != name}
    with pytest.raises(MissingVariableError, match=name):
        ExtStorageCall.from_environment(action.value, environment)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "ten", str(1 << 63), "1 ", "\u0661"])
def test_a_malformed_size_is_refused(value: str) -> None:
    with pytest.raises(InputError):
        plan.plan_create(call(Action.CREATE, VOL_SIZE=value))


def test_a_malformed_mode_is_named() -> None:
    with pytest.raises(MalformedVariableError, match="VOL_OPEN_EXCLUSIVE"):
        call(Action.OPEN, VOL_OPEN_EXCLUSIVE="yes")


def test_an_unknown_action_is_refused() -> None:
    with pytest.raises(InputError, match="explode"):
        ExtStorageCall.from_environment("explode", COMMON)


def test_create_is_planned_in_bytes() -> None:
    found = plan.plan_create(call(Action.CREATE, EXTP_ORIGIN="debian-12", VOL_CNAME="snf-vol-1"))
    assert found == plan.CreatePlan(VOLUME, 1 << 30, "debian-12", "snf-vol-1", adopt=False)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("EXTP_ORIGN", "x", "orign is unknown"),
        ("EXTP_ORIGIN", "../x", "the origin"),
        ("EXTP_ORIGIN_SIZE", "1g", "origin_size"),
        ("EXTP_ORIGIN_SIZE", str(1 << 31), "origin_size"),
        ("EXTP_REUSE_DATA", "maybe", "reuse_data"),
        ("EXTP_KEEP", "perhaps", "keep"),
        ("EXTP_STORE", "../x", "store"),
        ("EXTP_DEVICE", "nbd9", "device"),
    ],
)
def test_a_bad_parameter_is_named(name: str, value: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        plan.plan_create(call(Action.CREATE, **{name: value}))


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", ".x", "a b", "a\nb", "x" * 73, "a,b", "\u00e9", "a:b"])
def test_a_name_that_could_be_something_else_is_refused(name: str) -> None:
    with pytest.raises(BadNameError):
        check_name(name)


@pytest.mark.parametrize("size", [0, -512, 513, 1 << 63, (1 << 46) + 512])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(InputError):
        check_size(size)


def test_attach_never_fails_for_a_parameter() -> None:
    found = plan.plan_attach(call(Action.ATTACH, EXTP_DEVICE="nonsense", EXTP_ANYTHING="x"))
    assert found == plan.AttachPlan(VOLUME, plan.Device.NONE, uri=True)


@pytest.mark.parametrize(("value", "kept"), [("True", True), ("false", False), ("False", False), ("maybe", True)])
def test_a_volume_is_kept_when_in_doubt(value: str, kept: bool) -> None:
    assert plan.is_kept(call(Action.REMOVE, EXTP_KEEP=value)) is kept
    assert not plan.is_kept(call(Action.REMOVE))


def test_the_snapshot_of_an_export_is_not_kept_with_its_volume() -> None:
    assert not plan.is_kept(call(Action.REMOVE, VOL_NAME=f"{VOLUME}.snap", EXTP_KEEP="True"))


def test_kernelspace_gets_a_device_and_no_uri() -> None:
    found = plan.plan_attach(call(Action.ATTACH, EXTP_ACCESS=Access.KERNELSPACE.value))
    assert (found.device, found.uri) == (plan.Device.AUTO, False)
    with pytest.raises(BadParameterError):
        plan.plan_create(call(Action.CREATE, EXTP_ACCESS="kernelspace", EXTP_DEVICE="none"))


def test_only_the_snapshot_of_an_export_is_replaced() -> None:
    assert plan.plan_snapshot(call(Action.SNAPSHOT)).replace
    assert not plan.plan_snapshot(call(Action.SNAPSHOT, VOL_SNAPSHOT_NAME="golden")).replace


def test_the_answer_has_no_newline_at_its_end() -> None:
    assert answer.text("/dev/loop3", "") == "/dev/loop3"
    assert answer.text("", "/s") == "\nkvm:nbd+unix:///?socket=/s,file.reconnect-delay=30"

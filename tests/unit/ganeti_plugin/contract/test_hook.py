# SPDX-License-Identifier: BSD-2-Clause
"""The record of a hook call: every variable is read, and each that is missing or malformed is named."""

from __future__ import annotations

import pytest

from ganeti_plugin.contract.hook import HookCall, Phase
from ganeti_plugin.errors import MalformedVariableError, MissingVariableError

#: As Ganeti 3.0.2 sets them after `gnt-instance shutdown web1` (shortened: variables that we do not read).
STOP = {
    "PATH": "/sbin:/bin:/usr/sbin:/usr/bin",
    "GANETI_HOOKS_VERSION": "2",
    "GANETI_HOOKS_PHASE": "post",
    "GANETI_HOOKS_PATH": "instance-stop",
    "GANETI_OP_CODE": "OP_INSTANCE_SHUTDOWN",
    "GANETI_OP_TARGET": "web1.example.org",
    "GANETI_OBJECT_TYPE": "INSTANCE",
    "GANETI_DATA_DIR": "/var/lib/ganeti",
    "GANETI_CLUSTER": "cluster.example.org",
    "GANETI_MASTER": "node1.example.org",
    "GANETI_INSTANCE_NAME": "web1.example.org",
    "GANETI_INSTANCE_PRIMARY": "node1.example.org",
}
REQUIRED = (
    "GANETI_HOOKS_VERSION",
    "GANETI_HOOKS_PHASE",
    "GANETI_HOOKS_PATH",
    "GANETI_OP_CODE",
    "GANETI_CLUSTER",
    "GANETI_MASTER",
    "GANETI_INSTANCE_NAME",
)


def test_every_field_is_read() -> None:
    assert HookCall.from_environment(STOP) == HookCall(
        path="instance-stop",
        phase=Phase.POST,
        op_code="OP_INSTANCE_SHUTDOWN",
        target="web1.example.org",
        cluster="cluster.example.org",
        master="node1.example.org",
        instance="web1.example.org",
        primary="node1.example.org",
    )


def test_a_hook_that_is_not_about_an_instance_needs_no_instance() -> None:
    environment = {name: value for name, value in STOP.items() if "INSTANCE_" not in name}
    call = HookCall.from_environment({**environment, "GANETI_HOOKS_PATH": "cluster-verify"})
    assert (call.instance, call.primary) == (None, None)


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_named(name: str, value: str | None) -> None:
    environment = {key: text for key, text in STOP.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(MissingVariableError, match=rf"hook.*environment variable {name} is missing"):
        HookCall.from_environment(environment)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("GANETI_HOOKS_VERSION", "3", "one of 2"),
        ("GANETI_HOOKS_PHASE", "during", "one of pre, post"),
        ("GANETI_HOOKS_PATH", "../instance-stop", "the name of a hook directory"),
        ("GANETI_HOOKS_PATH", "instance-stop\n", "the name of a hook directory"),
        ("GANETI_OP_CODE", "shutdown", "the code of an operation"),
        ("GANETI_INSTANCE_NAME", "web1/../../etc", "a host name"),
        ("GANETI_INSTANCE_NAME", "-o", "a host name"),
    ],
)
def test_a_malformed_variable_is_named(name: str, value: str, expected: str) -> None:
    with pytest.raises(MalformedVariableError) as caught:
        HookCall.from_environment({**STOP, name: value})
    assert f"environment variable {name} has the value {value!r}, which is not {expected}" in str(caught.value)

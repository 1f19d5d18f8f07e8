# SPDX-License-Identifier: BSD-2-Clause
"""The helper's request is made of Ganeti's call, the parameters and the settings, and is never the same twice."""

from __future__ import annotations

import pytest

from ganeti_plugin.contract.os import Action, OsCall
from ganeti_plugin.settings import Image
from snf_image import parameters, plan, protocol
from snf_image.plan import RequestError
from tests.unit.ganeti_plugin.contract.test_os import CREATE


def request(**given: str) -> protocol.Request:
    instance = OsCall.from_environment(Action.CREATE, CREATE).instance
    assert instance is not None
    wanted = parameters.parse({"img_id": "null", "img_format": "diskdump", **given})
    return plan.request(instance, wanted, Image({"default_nic_config": "slaac"}))


def test_everything_arrives() -> None:
    made = request(img_passwd="", img_properties='{"USERS": "root admin"}')
    assert made.hostname == "web1.example.org"
    assert made.disks == (protocol.Disk(index=0, serial="snf-disk-0"),)
    assert (made.nics[0].ip, made.nics[0].gateway, made.nics[0].tags) == (
        "198.51.100.10", "198.51.100.1", ("public", "nfdhcpd"),
    )  # fmt: skip
    assert (made.users, made.password, made.default_nic_config) == (("root", "admin"), "", "slaac")


def test_no_two_runs_share_anything_random() -> None:
    """V10."""
    first, second = request(), request()
    assert first.nonce != second.nonce
    assert first.entropy != second.entropy


def test_a_request_that_is_too_large_is_refused_before_any_vm() -> None:
    with pytest.raises(RequestError, match="not possible"):
        request(img_properties='{"NOTE": "%s"}' % ("x" * (1 << 20)))

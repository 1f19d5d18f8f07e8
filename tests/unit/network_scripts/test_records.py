# SPDX-License-Identifier: BSD-2-Clause
from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from network_scripts import records, render
from tests.unit.network_scripts.test_intent import routed


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "DIRECTORY", tmp_path)


def test_a_record_comes_back_whole() -> None:
    elements = render.elements_of_nic(routed(), 5, "eth1")
    records.write("tap3", elements)
    assert records.read("tap3") == tuple(elements)
    records.forget("tap3")
    assert records.read("tap3") == ()
    records.forget("tap3")


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["a","b"]]', '[["a","b",7,null]]', "null", "7"])
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "tap3.json").write_text(text, encoding="utf-8")
    assert records.read("tap3") == ()


def test_the_profile_of_an_address_is_noted() -> None:
    address = IPv4Address("198.51.100.10")
    assert not records.profile_changes(address, "unprotected")
    assert not records.profile_changes(address, "unprotected")
    assert records.profile_changes(address, "protected")
    assert not records.profile_changes(address, "protected")
    assert records.profile_changes(address, "unprotected")

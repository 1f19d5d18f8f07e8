# SPDX-License-Identifier: BSD-2-Clause
from __future__ import annotations

import pytest

from network_scripts import links


def test_what_is_there_already_is_no_failure() -> None:
    said = "RTNETLINK answers: File exists\nCommand failed -:2\n"
    assert links.failures_of(said) == []


def test_any_other_failure_is_told() -> None:
    said = "RTNETLINK answers: File exists\nCommand failed -:2\n"
    said += "Error: Nexthop has invalid gateway.\nCommand failed -:7\n"
    assert links.failures_of(said) == ["Error: Nexthop has invalid gateway."]


def test_checksum() -> None:
    assert links._checksum(bytes.fromhex("45000073000040004011 0000 c0a80001c0a800c7".replace(" ", ""))) == 0xB861


def test_an_unknown_interface_is_named() -> None:
    with pytest.raises(links.NoInterfaceError, match="there is no interface tap98765"):
        links.index("tap98765")
    assert links.index_or_none("tap98765") is None

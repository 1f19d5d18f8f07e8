# SPDX-License-Identifier: BSD-2-Clause
"""A fresh lab, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.network_scripts.lab import Guest, Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Guest:
    """A guest with both families and no firewall profile."""
    made = lab.guest(0)
    made.up()
    return made


@pytest.fixture(scope="module")
def other(lab: Lab) -> Guest:
    """A guest with IPv4 only."""
    made = lab.guest(1, ipv6=False)
    made.up()
    return made

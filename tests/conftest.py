# SPDX-License-Identifier: BSD-2-Clause
"""Rules for every test: the marker follows from the folder, and unit tests touch no program and no network."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

TESTS = Path(__file__).parent
KINDS = ("unit", "real", "e2e")

#: Programs that unit tests may start: the interpreter itself (the guest-side code run under -E -s -S).
HARMLESS = (Path(sys.executable).name, "python3")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=1, help="the first seed of the tests that make up their own input")
    parser.addoption("--rounds", type=int, default=1, help="how many seeds they try; more take longer and find more")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> list[int]:
    """For tests that make up their own input. They name the seed when they fail."""
    first = request.config.getoption("--seed")
    return list(range(first, first + request.config.getoption("--rounds")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder: tests/unit, tests/real, tests/e2e."""
    for item in items:
        parts = item.path.relative_to(TESTS).parts if item.path.is_relative_to(TESTS) else ()
        kind = parts[0] if parts and parts[0] in KINDS else "unit"
        item.add_marker(getattr(pytest.mark, kind))


@pytest.fixture(autouse=True)
def _isolated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test that starts a program or opens a connection by accident fails."""
    if request.node.get_closest_marker("unit") is None:
        return
    start = subprocess.Popen.__init__

    def guarded_start(self: subprocess.Popen[Any], args: Any, *rest: Any, **options: Any) -> None:
        program = Path(str(args if isinstance(args, str | bytes | Path) else args[0]))
        if program.name not in HARMLESS and not program.is_relative_to("/tmp"):
            raise AssertionError(f"a unit test started {program}: mark it real, or put a fake program on PATH")
        start(self, args, *rest, **options)

    def no_connection(self: socket.socket, address: Any) -> NoReturn:
        raise AssertionError(f"a unit test connected to {address!r}")

    connect = socket.socket.connect

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            no_connection(self, address)
        connect(self, address)

    monkeypatch.setattr(subprocess.Popen, "__init__", guarded_start)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)

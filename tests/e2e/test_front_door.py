# SPDX-License-Identifier: BSD-2-Clause
"""`./run` refuses what it cannot do, in one sentence, before it touches anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ganeti_plugin.files import locked
from tests.place import ROOT, TESTBED, Outcome, host

pytestmark = pytest.mark.timeout(120)

RUN = ROOT / "run"
DEMO_LOCK = Path("/run/lock/snf-ganeti-demo")


def nodes() -> str:
    """The nodes of the testbed, with their pids: a demonstration begins by ending them."""
    return host(TESTBED, "status", "--json").stdout


def one_sentence(outcome: Outcome) -> str:
    """The only thing that was said on stderr."""
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    assert "Traceback" not in outcome.said
    assert len(lines) == 1, outcome.said
    return lines[0]


def test_a_second_demo_refuses() -> None:
    before = nodes()
    with locked(DEMO_LOCK, timeout=5):
        outcome = host(RUN, "demo")
    assert outcome.status != 0
    assert "another './run demo'" in one_sentence(outcome)
    assert nodes() == before


@pytest.mark.parametrize("subcommand", ["demo", "test", "bench", "unit", "lint", "repo", "clean"])
def test_without_root(subcommand: str) -> None:
    outcome = host("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", RUN, subcommand)
    assert outcome.status != 0
    assert "root" in one_sentence(outcome)


@pytest.mark.parametrize(
    ("text", "named"),
    [("ID=ubuntu\nVERSION_ID=24.04\n", "ubuntu-24.04"), ("ID=debian\nVERSION_ID=11\n", "debian-11"), ("", "unknown")],
)
def test_on_a_wrong_distribution(tmp_path: Path, text: str, named: str) -> None:
    release = tmp_path / "os-release"
    release.write_text(text)
    outcome = host(RUN, "demo", env={**os.environ, "OS_RELEASE": str(release)})
    assert outcome.status != 0
    assert named in one_sentence(outcome)
    assert "Debian 12" in outcome.stderr


def test_an_unknown_subcommand_shows_the_list() -> None:
    outcome = host(RUN, "dance")
    assert outcome.status != 0
    assert "'dance'" in outcome.stderr
    assert "demo" in outcome.stderr


def test_alone_it_lists_its_subcommands() -> None:
    outcome = host(RUN)
    assert outcome.status == 0
    for subcommand in ("demo", "test", "unit", "lint", "deb", "repo", "bench", "clean"):
        assert subcommand in outcome.stdout

# SPDX-License-Identifier: BSD-2-Clause
"""The manual pages say what the commands can do: every command, option and parameter is in its page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

import extstorage.cli
import extstorage.plan
import ganeti_plugin.cli
import snf_image.cli
import snf_image.parameters
from ganeti_plugin import __version__
from network_scripts import commands

MANUALS = Path(__file__).parents[2] / "docs/man"
PARSERS = {
    "archipelago": extstorage.cli.parser(),
    "snf-ganeti": ganeti_plugin.cli._parser(),
    "snf-image": snf_image.cli._parser(),
}


def page(name: str) -> str:
    return (MANUALS / f"{name}.8").read_text(encoding="utf-8").replace("\\-", "-")


def words(parser: argparse.ArgumentParser, path: str = "") -> Iterator[str]:
    """Every long option, and every command that has no further ones with the way to it."""
    leads_on = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            leads_on = True
            for name, child in action.choices.items():
                yield from words(child, f"{path} {name}".strip())
        yield from (option for option in action.option_strings if option.startswith("--"))
    if not leads_on:
        yield path


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_and_option_is_in_the_page(name: str) -> None:
    text = page(name)
    wanted = set(words(PARSERS[name]))
    assert len(wanted) > 3
    for word in wanted:
        assert word in text, f"{name}.8 lacks {word}"


def test_every_command_of_snf_network_is_in_the_page() -> None:
    listed = [line.split()[0] for line in commands.USAGE.splitlines() if line.startswith("  ")]
    assert len(listed) > 3
    for word in listed:
        assert f".B {word}\n" in page("snf-network")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("archipelago", extstorage.plan.PARAMETERS), ("snf-image", snf_image.parameters.DECLARED)],
)
def test_every_parameter_is_in_the_page(name: str, parameters: dict[str, str]) -> None:
    for parameter in parameters:
        assert parameter in page(name), parameter


@pytest.mark.parametrize("path", sorted(MANUALS.glob("*.[1-8]")), ids=lambda path: path.name)
def test_a_page_has_licence_version_and_sections(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith('.\\" SPDX-License-Identifier: BSD-2-Clause\n.TH ')
    assert f'"snf-ganeti {__version__}" "snf-ganeti"' in text
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"):
        assert f".SH {section}\n" in text, section

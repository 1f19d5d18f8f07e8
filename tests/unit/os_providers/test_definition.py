# SPDX-License-Identifier: BSD-2-Clause
"""What Ganeti finds in the OS definition's folder is what its manual asks for."""

from __future__ import annotations

import os
from pathlib import Path

from ganeti_plugin.contract.os import Action
from snf_image.parameters import DECLARED

TREE = Path(__file__).resolve().parents[3]
FOLDER = TREE / "os_providers" / "snf-image"


def test_names_are_the_required_ones() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        *Action, "ganeti_api_version", "parameters.list", "variants.list",
    }  # fmt: skip


def test_scripts_are_relative_links_to_one_program() -> None:
    for action in Action:
        path = FOLDER / action
        assert str(path.readlink()) == "../../ganeti-os"
        assert path.resolve() == TREE / "ganeti-os"
        assert path.is_file()
        assert os.access(path, os.X_OK)


def test_parameters_list_is_made_of_the_declarations() -> None:
    lines = (FOLDER / "parameters.list").read_text().splitlines()
    assert lines == [f"{name} {text}" for name, text in DECLARED.items()]
    assert all(lines), "an empty line breaks Ganeti"


def test_version_and_variants() -> None:
    assert (FOLDER / "ganeti_api_version").read_text() == "20\n"
    assert (FOLDER / "variants.list").read_text() == "default\n"

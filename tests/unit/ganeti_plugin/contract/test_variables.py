# SPDX-License-Identifier: BSD-2-Clause
"""The readers that all contract modules share."""

from __future__ import annotations

import pytest

from ganeti_plugin.contract.variables import Variables
from ganeti_plugin.errors import InputError, MalformedVariableError, MissingVariableError

ENVIRONMENT = {"SIZE": "1024", "EMPTY": "", "TAGS": " a  b ", "NAME": "disk0"}


@pytest.fixture(name="variables")
def _variables() -> Variables:
    return Variables(ENVIRONMENT, "create")


def test_values_are_read(variables: Variables) -> None:
    assert variables.required("NAME") == "disk0"
    assert variables.integer("SIZE", minimum=1) == 1024
    assert variables.words("TAGS") == ("a", "b")
    assert variables.words("MISSING") == ()
    assert variables.optional("EMPTY") is None
    assert variables.matching("NAME", r"disk\d", "a disk") == "disk0"


def test_missing_and_empty_are_the_same(variables: Variables) -> None:
    for name in ("MISSING", "EMPTY"):
        with pytest.raises(MissingVariableError, match=f"^create: the environment variable {name} is missing"):
            variables.required(name)


@pytest.mark.parametrize("value", ["-1", "1.5", " 1", "1\n", "٣", "1e3", "0x10", "9" * 19, "0"])
def test_what_is_no_number_is_malformed(value: str) -> None:
    with pytest.raises(MalformedVariableError, match="SIZE has the value .* a whole number of at least 1"):
        Variables({"SIZE": value}, "grow").integer("SIZE", minimum=1)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        Variables({"SIZE": "x" * 5000}, "grow").integer("SIZE")
    assert len(str(caught.value)) < 400

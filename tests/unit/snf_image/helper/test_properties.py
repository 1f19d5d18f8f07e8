# SPDX-License-Identifier: BSD-2-Clause
"""The original's reading of properties."""

from __future__ import annotations

import pytest

from snf_image.helper.errors import TaskError
from snf_image.helper.properties import Properties


@pytest.mark.parametrize(
    ("value", "expected", "warned"),
    [
        ("yes", True, False),
        ("TRUE", True, False),
        (" 1 ", True, False),
        ("no", False, False),
        ("unset", False, False),
        ("", False, True),
        ("maybe", True, True),
        (None, False, False),
    ],
)
def test_booleans(value: str | None, expected: bool, warned: bool) -> None:
    warnings: list[str] = []
    properties = Properties({} if value is None else {"Do_Sync": value}, warnings.append)
    assert properties.is_set("DO_SYNC") is expected
    assert bool(warnings) is warned


def test_numbers_and_words() -> None:
    properties = Properties({"A": " 3 ", "B": "x", "C": "", "D": "a  b"}, lambda _text: None)
    assert properties.number("a") == 3
    assert properties.number("C") is None
    assert properties.words("D") == ["a", "b"]
    with pytest.raises(TaskError, match="B is not a number"):
        properties.number("B")

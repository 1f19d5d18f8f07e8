# SPDX-License-Identifier: BSD-2-Clause
"""Logging: hostile text cannot forge lines, and debug lines appear only when asked for."""

from __future__ import annotations

import pytest

from ganeti_plugin import log


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred\r", r"\x1b[31mred\r"),
        ("\u202eback", r"\u202eback"),
        ("byte \udcff", r"byte \udcff"),
        ("ünï", "ünï"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    """L10."""
    assert log.escape(text) == shown


def test_a_message_is_bounded() -> None:
    assert len(log.escape("x" * 100_000)) == log.LIMIT


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("program", debug_level=0)
    log.debug("hidden")
    log.info("100%")
    log.warning("about %s", "this\n")
    log.error("and that")
    assert capsys.readouterr().err == "100%\nwarning: about this\\n\nerror: and that\n"
    log.setup("program", debug_level=1)
    log.debug("shown %d", 1)
    assert capsys.readouterr().err == "debug: shown 1\n"
    log.setup("program")


def test_a_command_tells_what_goes_well_itself(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("test")
    log.only_warnings()
    log.info("made")
    log.warning("nearly full")
    log.setup("test")
    assert capsys.readouterr().err == "warning: nearly full\n"

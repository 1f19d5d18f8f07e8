# SPDX-License-Identifier: BSD-2-Clause
"""docs/troubleshooting.md quotes what the programs say: each quoted sentence is one that the code can make."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^> (?:- )?(.+)$", PAGE, re.MULTILINE)

#: A template with fewer letters of its own says nothing, such as "{path}: {reason}".
_LETTERS = 5

Patterns = list[re.Pattern[str]]


def templates() -> Iterator[str]:
    """Every text in the code, as a regular expression that what is filled in matches."""
    for folder in ("extstorage", "hooks", "ganeti_plugin"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from _pattern(re.split(r"{[^{}]*}", node.value))
                elif isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                    yield from _pattern("".join("\0" if part is None else str(part) for part in parts).split("\0"))


def _pattern(parts: list[str]) -> Iterator[str]:
    if sum(map(str.isalpha, "".join(parts))) >= _LETTERS:
        yield "(.*)".join(map(re.escape, parts))


def is_said(known: Patterns, text: str) -> bool:
    """What is filled in is in capitals, or said by somebody else."""
    found = (pattern.fullmatch(text) for pattern in known)
    return any(all(_is_filled_in(known, each) for each in match.groups()) for match in found if match)


def _is_filled_in(known: Patterns, text: str) -> bool:
    return not re.search("[a-z]", text) or is_said(known, text)


@pytest.fixture(scope="module", name="known")
def _known() -> Patterns:
    return [re.compile(each) for each in {*templates()}]


def test_sentences_are_quoted() -> None:
    assert len(QUOTED) > 20


@pytest.mark.parametrize("sentence", QUOTED)
def test_a_quoted_sentence_is_in_the_code(known: Patterns, sentence: str) -> None:
    assert is_said(known, sentence)


@pytest.mark.parametrize("sentence", ["the store is on fire", "the store 'STORE' can't be used: it is on fire"])
def test_what_the_code_does_not_say_is_noticed(known: Patterns, sentence: str) -> None:
    assert not is_said(known, sentence)


def test_a_command_that_is_named_is_one() -> None:
    named = set(re.findall(r"archipelago ((?:store|volume|snapshot|image|server) [a-z-]+)", PAGE))
    manual = (ROOT / "docs/man/archipelago.8").read_text(encoding="utf-8").replace("\\-", "-")
    assert named
    for command in named:
        assert command in manual or command.split()[1] in manual, command

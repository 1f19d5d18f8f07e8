# SPDX-License-Identifier: BSD-2-Clause
"""Templates: the administrator's copy wins, and text and values must match."""

from __future__ import annotations

from pathlib import Path

import pytest

from ganeti_plugin import templates


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHIPPED", "SITE"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(templates, name, tmp_path / name)


def test_placeholders_are_filled_and_dollars_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "SHIPPED/a.nft").write_text("set $x %%{name} 100% {}\n", encoding="utf-8")
    assert templates.render("a.nft", {"name": "eth1"}) == "set $x eth1 100% {}\n"


def test_the_administrators_copy_wins(tmp_path: Path) -> None:
    (tmp_path / "SHIPPED/a").write_text("shipped", encoding="utf-8")
    (tmp_path / "SITE/a").write_text("site", encoding="utf-8")
    assert templates.render("a", {}) == "site"


@pytest.mark.parametrize(
    ("text", "values", "fault"),
    [
        ("%%{a} %%{b}", {"a": "1"}, "lacks a value for b"),
        ("%%{a}", {"a": "1", "c": "2"}, "does not use c"),
        ("%%{a", {"a": "1"}, "has a malformed placeholder"),
    ],
)
def test_text_and_values_must_match(tmp_path: Path, text: str, values: dict[str, str], fault: str) -> None:
    (tmp_path / "SHIPPED/a").write_text(text, encoding="utf-8")
    with pytest.raises(templates.TemplateError, match=f"the template {tmp_path}/SHIPPED/a {fault}"):
        templates.render("a", values)


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(templates.TemplateError, match="cannot be read"):
        templates.render("a", {})

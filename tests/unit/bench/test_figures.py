# SPDX-License-Identifier: BSD-2-Clause
"""Whether a figure is met, and how the table shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.figures import Figure, duration, save, table


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure(name="a", value=1.0, limit=1.0), True),
        (Figure(name="a", value=1.1, limit=1.0), False),
        (Figure(name="a", value=2.0, peer_value=1.0, most_ratio=2.2), True),
        (Figure(name="a", value=2.3, peer_value=1.0, most_ratio=2.2), False),
        (Figure(name="a", value=2.0, most_ratio=2.2), False),
        (Figure(name="a", value=2.0, peer_value=10.0, least_speedup=5), True),
        (Figure(name="a", value=2.1, peer_value=10.0, least_speedup=5), False),
        (Figure(name="a", value=99.0), True),
        (Figure(name="a", value=121.0, unit="MiB", limit=120), False),
    ],
)
def test_met(figure: Figure, met: bool) -> None:
    assert figure.is_met is met


def test_the_table_has_a_line_for_each_figure_and_says_no_loudly() -> None:
    figures = [
        Figure(name="fast", value=0.05, limit=0.06),
        Figure(name="slow", value=9.0, peer="other", peer_value=3.0, most_ratio=2),
    ]
    head, fast, slow = table(figures).splitlines()
    assert head.split() == ["figure", "ours", "peer", "theirs", "ratio", "target", "met"]
    assert fast.split()[-1] == "yes"
    assert slow.split()[-1] == "NO"
    assert "3.00" in slow


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (1500.0, "25 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_another_unit_is_shown() -> None:
    assert "90 MiB" in table([Figure(name="memory", value=90.0, unit="MiB", limit=120)])


def test_figures_that_were_not_measured_now_stay(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    save([Figure(name="a", value=1.0), Figure(name="b", value=2.0, limit=1)], path)
    save([Figure(name="a", value=3.0)], path)
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert rows["a"]["value"] == 3.0
    assert rows["b"]["met"] is False

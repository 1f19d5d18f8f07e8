# SPDX-License-Identifier: BSD-2-Clause
"""What a measurement yields, and the table of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row: what was measured, beside what, and whether that is good enough. Less is better; medians count."""

    name: str
    value: float
    unit: str = "s"
    peer: str = ""
    """What it is compared with; empty when the target is an absolute time."""
    peer_value: float | None = None
    limit: float | None = None
    """Most that is allowed."""
    most_ratio: float | None = None
    """value / peer_value may be this at most."""
    least_speedup: float | None = None
    """peer_value / value must be this at least."""
    runs: int = 1

    @property
    def ratio(self) -> float | None:
        """Ours to the peer's: below 1 we are faster."""
        return self.value / self.peer_value if self.peer_value else None

    @property
    def target(self) -> str:
        words = []
        if self.limit is not None:
            words.append(f"<= {self.shown(self.limit)}")
        if self.most_ratio is not None:
            words.append(f"<= {self.most_ratio:g} x")
        if self.least_speedup is not None:
            words.append(f"{self.least_speedup:g} x faster")
        return ", ".join(words) or "-"

    def shown(self, value: float) -> str:
        return duration(value) if self.unit == "s" else f"{value:.3g} {self.unit}"

    @property
    def is_met(self) -> bool:
        if self.limit is not None and self.value > self.limit:
            return False
        if self.most_ratio is not None and (self.ratio is None or self.ratio > self.most_ratio):
            return False
        return self.least_speedup is None or (self.ratio is not None and self.ratio <= 1 / self.least_speedup)


def duration(seconds: float) -> str:
    """Three digits that matter, in the unit that fits."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"


def table(figures: Sequence[Figure]) -> str:
    """The figures as text, one a line."""
    if not figures:
        return "nothing was measured"
    rows = [("figure", "ours", "peer", "theirs", "ratio", "target", "met")]
    for figure in figures:
        theirs = figure.shown(figure.peer_value) if figure.peer_value else "-"
        ratio = f"{figure.ratio:.2f}" if figure.ratio else "-"
        met = "yes" if figure.is_met else "NO"
        ours = figure.shown(figure.value)
        rows.append((figure.name, ours, figure.peer or "-", theirs, ratio, figure.target, met))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def save(figures: Sequence[Figure], path: Path) -> None:
    """Write the same as JSON; figures of earlier runs that were not measured now stay."""
    kept = {row["name"]: row for row in _load(path)}
    for figure in figures:
        kept[figure.name] = {**asdict(figure), "ratio": figure.ratio, "target": figure.target, "met": figure.is_met}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(kept.values()), indent=1) + "\n")


def _load(path: Path) -> list[dict[str, object]]:
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict) and "name" in row] if isinstance(rows, list) else []

# SPDX-License-Identifier: BSD-2-Clause
"""Keeps what long work tells of its progress."""

from __future__ import annotations


class Told:
    """Every call, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[int | None, str]] = []

    def __call__(self, percent: int | None, detail: str = "") -> None:
        self.calls.append((percent, detail))

    def percents(self) -> list[int]:
        """Of work that knew how much there is from the beginning."""
        known = [percent for percent, _ in self.calls if percent is not None]
        assert len(known) == len(self.calls)
        return known

# SPDX-License-Identifier: BSD-2-Clause
"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol

#: Content blocks after which somebody is told that it goes on.
TELLING = 4096


class Progress(Protocol):
    """Who is told: per cents, or None as long as nobody knows how much there is; and what else can be said."""

    def __call__(self, percent: int | None, detail: str = "") -> None: ...


def untold(percent: int | None, detail: str = "") -> None:
    """Nobody is told."""

# SPDX-License-Identifier: BSD-2-Clause
"""How long the last `./run demo` and `./run test` took, from what they left in build/."""

from __future__ import annotations

import json

from tests.bench.figures import Figure
from tests.place import ROOT

#: File in build/, name of the figure, most seconds.
DURATIONS = (("demo.json", "./run demo, packages cached", 360.0), ("test.json", "./run test", 1500.0))


def measure(_rounds: int) -> list[Figure]:
    """A figure for each duration that is known."""
    figures = []
    for file, name, limit in DURATIONS:
        try:
            seconds = float(json.loads((ROOT / "build" / file).read_text())["seconds"])
        except (OSError, ValueError, KeyError):
            continue
        figures.append(Figure(name=name, value=seconds, limit=limit))
    return figures

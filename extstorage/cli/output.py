# SPDX-License-Identifier: BSD-2-Clause
"""What the commands print: tables and lists for people, JSON for programs, progress on long work."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Self

_SIZES = ("size", "used", "total", "free", "logical", "stored", "read_bytes", "written_bytes")
_TIMES = ("created",)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def print_rows(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """A table; values are shown as `shown` says."""
    cells = [[column.upper() for column in columns]]
    cells += [[shown(column, row.get(column)) for column in columns] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_facts(facts: Mapping[str, object]) -> None:
    """One thing, a line for each fact."""
    width = max(map(len, facts), default=0) + 2
    for name, value in facts.items():
        print(f"{name + ':':<{max(12, width)}}{shown(name, value)}")


def shown(name: str, value: object) -> str:
    """A value for people; the name of its column says what a number means."""
    if name in _SIZES and isinstance(value, int):
        return human(value)
    if name == "full" and isinstance(value, int):
        return f"{value} %"
    if name in _TIMES and isinstance(value, float | int):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if value else "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={text}" for key, text in value.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value not in ("", None) else "-"


def human(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


#: Seconds after which the line is written anew when only its details have changed.
_OFTEN = 1.0


class Meter:
    """Progress on a terminal: one line on stderr that changes, and is ended whatever happens. Nothing elsewhere."""

    def __init__(self, name: str, done: str) -> None:
        self._name = name
        self._done = done
        self._shown = -1
        self._detail = ""
        self._when = 0.0
        self._on_terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown >= 0:
            print(file=sys.stderr)

    def __call__(self, percent: int | None, detail: str = "") -> None:
        if not self._on_terminal:
            return
        is_news = detail != self._detail and time.monotonic() >= self._when + _OFTEN
        known = percent or 0
        if known > self._shown or is_news:
            self._shown, self._detail, self._when = max(known, self._shown), detail, time.monotonic()
            share = "" if percent is None else f"{self._shown:3d} % "
            text = f"{self._name}: {share}{self._done}{detail}"
            print(f"\r{text[: shutil.get_terminal_size().columns - 1]}\033[K", end="", file=sys.stderr, flush=True)

# SPDX-License-Identifier: BSD-2-Clause
"""Steps with a clock and a verdict, and the table that sums them up."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ganeti_plugin.errors import StateError


class ProofFailedError(StateError):
    template = "{claim}: {found}"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of the table; `seconds` is wall time."""

    title: str
    seconds: float
    result: str
    passed: bool


@dataclass
class Report:
    """The steps done so far. A failed proof is kept and the next one is tried; a failed step ends the run."""

    steps: list[Step] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Time what runs inside; the caller may append words to the result."""
        print(f"==> {title}", flush=True)
        started = time.monotonic()
        words: list[str] = []
        try:
            yield words
        except BaseException as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._add(title, started, f"FAILED: {reason}", passed=False)
            raise
        self._add(title, started, ", ".join(words) or "done", passed=True)

    def prove(self, claim: str, check: Callable[[], str]) -> None:
        """Run one proof: `check` returns what it saw, or raises. The run goes on either way."""
        with contextlib.suppress(StateError), self.step(claim) as words:
            words.append(check())

    def _add(self, title: str, started: float, result: str, *, passed: bool) -> None:
        step = Step(title=title, seconds=time.monotonic() - started, result=result, passed=passed)
        self.steps.append(step)
        print(f"    {result} ({step.seconds:.1f} s)", flush=True)

    @property
    def passed(self) -> bool:
        return all(step.passed for step in self.steps)

    def table(self) -> str:
        width = max((len(step.title) for step in self.steps), default=4)
        rows = [f"{'step':<{width}}  seconds  result"]
        rows += [f"{step.title:<{width}}  {step.seconds:7.1f}  {step.result}" for step in self.steps]
        total = sum(step.seconds for step in self.steps)
        return "\n".join([*rows, f"{'all':<{width}}  {total:7.1f}  {'passed' if self.passed else 'FAILED'}"])

    def save(self, path: Path) -> None:
        """Write the steps as JSON; the benchmark reads the total from it."""
        path.parent.mkdir(exist_ok=True)
        total = sum(step.seconds for step in self.steps)
        rows = [asdict(step) for step in self.steps]
        path.write_text(json.dumps({"seconds": total, "passed": self.passed, "steps": rows}, indent=2) + "\n")

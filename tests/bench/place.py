# SPDX-License-Identifier: BSD-2-Clause
"""Where benchmarks run: a node of the testbed, and a root with libguestfs for the peer."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.errors import StateError
from tests.place import TESTBED, done, host

CACHE = Path("/var/cache/snf-ganeti")

#: The same file, as a node sees the tree.
TIMER = "/src/tests/bench/timer.py"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command to be timed, with untimed shell texts around it."""

    name: str
    command: Sequence[str]
    prepare: str = ""
    cleanup: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def has_image(name: str) -> bool:
    """Whether the default store has it. Others may not have been made yet."""
    return name in done("archipelago", "image", "list", "--store", "main").split()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def timed(jobs: Sequence[Job], *, rounds: int, prefix: Sequence[str | Path] = (), timer: str = TIMER) -> list[float]:
    """Medians of the jobs, in their order; `prefix` enters the place, node1 unless told."""
    place = list(prefix) or [TESTBED, "exec", "node1"]
    request = json.dumps({"rounds": rounds, "jobs": [asdict(job) for job in jobs]})
    limit = 600.0 * rounds * len(jobs)
    outcome = host(*place, "/usr/bin/python3", timer, stdin=request, timeout=limit)
    if outcome.status:
        raise StateError(message=outcome.stderr.strip()[-2000:])
    seconds = json.loads(outcome.stdout)
    for job in jobs:
        log.info("  %s: %s", job.name, " ".join(f"{value:.3f}" for value in seconds[job.name]))
    return [median(seconds[job.name]) for job in jobs]

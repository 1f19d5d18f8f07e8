# SPDX-License-Identifier: BSD-2-Clause
"""Times commands where they run (in a node), so that getting there costs nothing.

Reads a JSON request on stdin: {"rounds": N, "jobs": [{"name", "prepare", "command", "cleanup", "environment"}]};
prepare and cleanup are shell texts that are not timed. The jobs take turns, so that a busy moment hits all alike.
Writes {"name": [seconds, ...]}. Standard library only: it runs in any root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

#: Seconds that one command may take.
DEADLINE = 600


def shell(text: str) -> None:
    if text:
        subprocess.run(["/bin/sh", "-ec", text], check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE)


def once(job: dict[str, Any]) -> float:
    """Seconds of one run; a failing command ends everything with its own words."""
    shell(job["prepare"])
    environment = {**os.environ, **job["environment"]}
    command = job["command"]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False
        )
        seconds = time.monotonic() - started
    finally:
        shell(job["cleanup"])
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode("utf-8", "replace")[-1500:]
        raise SystemExit(f"{job['name']}: {job['command'][0]} ended with {done.returncode}: {words}")
    return seconds


def main() -> None:
    request = json.load(sys.stdin)
    jobs = request["jobs"]
    seconds: dict[str, list[float]] = {job["name"]: [] for job in jobs}
    for _ in range(request["rounds"]):
        for job in jobs:
            seconds[job["name"]].append(once(job))
    json.dump(seconds, sys.stdout)


if __name__ == "__main__":
    main()

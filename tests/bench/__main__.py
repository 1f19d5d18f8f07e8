# SPDX-License-Identifier: BSD-2-Clause
"""`./run bench [NAME...]`: the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from ganeti_plugin import log
from ganeti_plugin.entry import guarded
from ganeti_plugin.errors import Error, InputError
from ganeti_plugin.files import locked
from ganeti_plugin.run import run
from tests.bench import add, clone, durations, helper, nic, volumes
from tests.bench.figures import Figure, save, table
from tests.bench.place import CACHE
from tests.place import ROOT, TESTBED, is_fit

BENCHMARKS: dict[str, Callable[[int], list[Figure]]] = {
    "attach": clone.measure_attach,
    "clone": clone.measure_clone,
    "files": volumes.measure_files,
    "rados": volumes.measure_rados,
    "rados-clone": volumes.measure_clone_in_rados,
    "snapshot": volumes.measure_snapshot,
    "rados-snapshot": volumes.measure_snapshot_in_rados,
    "memory": volumes.measure_memory,
    "import": volumes.measure_import,
    "nic": nic.measure,
    "add": add.measure,
    "helper": helper.measure,
    "durations": durations.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description="measure the project's figures beside their peers")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all of them if none")
    parser.add_argument("--runs", type=int, default=3, help="how often each is measured; the median counts (default 3)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        raise InputError(message=f"there is no benchmark '{unknown[0]}'", hint=f"there are {', '.join(BENCHMARKS)}")
    if os.geteuid() != 0:
        raise InputError(message="./run bench must run as root, since it starts a testbed", hint="use sudo")
    CACHE.mkdir(exist_ok=True)
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load > processors / 2:
        log.warning("this machine is busy (load %.1f on %d processors): all times will be too long", load, processors)
    with locked(CACHE / "bench.lock", timeout=0):
        figures, failures = measure_all(options.names or list(BENCHMARKS), options.runs)
    print("\n" + table(figures))
    for failure in failures:
        print(f"not measured: {failure}")
    save(figures, ROOT / "build/bench.json")
    return 0 if not failures and all(figure.is_met for figure in figures) else 1


def measure_all(names: list[str], rounds: int) -> tuple[list[Figure], list[str]]:
    """Bring up a testbed unless one with Ceph is up, and measure; what fails is told and does not stop the rest."""
    figures: list[Figure] = []
    failures: list[str] = []
    started = names != ["durations"] and not is_fit("node1")
    try:
        if started:
            log.info("bringing up a node")
            run([TESTBED, "up", "--nodes", "1", "--tools", "--ceph"], timeout=1500, env=os.environ)
        for name in names:
            log.info("measuring: %s", name)
            try:
                figures += BENCHMARKS[name](rounds)
            except Error as error:
                failures.append(f"{name}: {error}")
    finally:
        if started:
            run([TESTBED, "down"], timeout=300, env=os.environ)
    return figures, failures


if __name__ == "__main__":
    sys.exit(guarded("./run bench", main))

# SPDX-License-Identifier: BSD-2-Clause
"""`./run demo`: the command line."""

from __future__ import annotations

import argparse
import sys

import tests.demo.demo
from ganeti_plugin.entry import guarded
from tests.demo.demo import demonstrate


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run demo", description=tests.demo.demo.__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running and say how to look around")
    arguments = parser.parse_args()
    return demonstrate(keep=arguments.keep)


sys.exit(guarded("./run demo", main))

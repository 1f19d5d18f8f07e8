# SPDX-License-Identifier: BSD-2-Clause
"""The command snf-ganeti: what concerns all plugins on a node. So far, the configuration."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ganeti_plugin import __version__, config, manual
from ganeti_plugin.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    action = options.action
    status: int = action(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="snf-ganeti", description="The snf-ganeti plugins on this node.")
    parser.add_argument("--version", action="version", version=f"snf-ganeti {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    about = commands.add_parser("config", help="check and show the configuration")
    actions = about.add_subparsers(title="actions", metavar="ACTION", required=True)

    check = actions.add_parser("check", help="read all files and list every fault with its file and line")
    check.set_defaults(action=_check)
    show = actions.add_parser("show", help="print every setting with the value in force")
    show.add_argument("--json", action="store_true", help="print JSON instead of TOML")
    show.set_defaults(action=_show)
    for command in (check, show):
        command.add_argument(
            "--directory", type=Path, default=config.DIRECTORY, help="where the files are (default: %(default)s)"
        )
    actions.add_parser("example", help="print a file with every setting, commented").set_defaults(action=_example)
    actions.add_parser("manual", help="print the manual page snf-ganeti.toml(5)").set_defaults(action=_manual)
    return parser


def _check(options: argparse.Namespace) -> int:
    """Print every fault on a line of its own; one line too when there is none."""
    _, faults = config.inspect(options.directory)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        return ConfigError.exit_status
    read = config.files(options.directory)
    print(f"no faults in {', '.join(map(str, read))}" if read else f"no files in {options.directory}: all defaults")
    return 0


def _show(options: argparse.Namespace) -> int:
    configuration = config.load(options.directory)
    print(json.dumps(manual.as_plain(configuration), indent=2) if options.json else manual.listing(configuration))
    return 0


def _example(_options: argparse.Namespace) -> int:
    print(manual.example(), end="")
    return 0


def _manual(_options: argparse.Namespace) -> int:
    print(manual.page(), end="")
    return 0

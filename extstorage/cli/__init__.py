# SPDX-License-Identifier: BSD-2-Clause
"""The command archipelago: images, volumes and snapshots on a node, for the administrator.

One module for each group of commands. What they need of the rest is imported inside the actions, so that help and
completion, which people wait for at each key, cost the parser alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from extstorage.cli import image, maintenance, scrub, server, snapshot, store, volume
from extstorage.cli.group import Action
from ganeti_plugin import __version__, entry, log
from ganeti_plugin.errors import InputError

GROUPS = (image, volume, snapshot, store, server, maintenance, scrub)


class NotRootError(InputError):
    template = "archipelago must be run by root"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) == 2 and given[0] in ("device-up", "device-down"):
        _serve_the_unit(*given)
        return 0
    if given == ["fetch"]:
        # For streams.py, which runs it as nobody.
        from extstorage import fetch

        return fetch.main()
    described = parser()
    if entry.is_completing():
        from extstorage.cli import completion

        completion.complete(described)
    options = described.parse_args(given)
    if os.geteuid() != 0 and not options.is_help:
        raise NotRootError
    action: Action = options.action
    log.only_warnings()
    if arguments is None:
        entry.end_at_the_second_signal("archipelago")
    action(options)
    return 0


def _serve_the_unit(command: str, name: str) -> None:
    """What the units of block devices run; not for people, so the help does not list it."""
    from extstorage import apply, devices
    from extstorage.names import check_name

    devices.UNIT_COMMANDS[command](apply.site(), check_name(name))


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(prog="archipelago", description="Thin volumes, snapshots and images.")
    described.add_argument("--version", action="version", version=f"archipelago {__version__}")
    described.set_defaults(action=lambda _options: described.print_help(), is_help=True)
    commands = described.add_subparsers(title="commands", metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return described

# SPDX-License-Identifier: BSD-2-Clause
"""archipelago server: the servers of the volumes that are attached on this node."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from extstorage.cli.group import Group, Options
from extstorage.cli.output import print_json, print_rows
from extstorage.cli.place import here
from ganeti_plugin.errors import Error, InputError, StateError

if TYPE_CHECKING:
    from extstorage.cli.group import Commands

_COLUMNS = ("name", "store", "mode", "writer", "pid", "device", "fault")


class WhichServersError(InputError):
    template = "say which volumes' servers are to be restarted, or --all"


class NotRestartedError(StateError):
    template = "{count} servers were not restarted: {names}"


def add(commands: Commands) -> None:
    group = Group(commands, "server", "servers of the volumes that are attached on this node")
    group.add("list", "list the servers", _list, json=True)
    text = "replace servers by new processes, one after the other; guests notice a pause"
    parser = group.add("restart", text, _restart)
    names = parser.add_argument("name", nargs="*", help="volumes")
    names.completer = _attached  # type: ignore[attr-defined]
    parser.add_argument("--all", action="store_true", help="all that are attached here")


def _attached(**_known: object) -> list[str]:
    from extstorage import apply, attached

    return attached.names(apply.site())


def _list(options: Options) -> None:
    from extstorage import attached

    site = here(options)
    found = [attached.look(site, name) for name in attached.names(site)]
    rows = [one._asdict() for one in found if not options.store or one.store == options.store]
    if options.json:
        print_json(rows)
    else:
        print_rows(_COLUMNS, rows)


def _restart(options: Options) -> None:
    from extstorage import attached
    from extstorage.names import check_name

    site = here(options)
    if bool(options.name) == options.all:
        raise WhichServersError
    names = attached.names(site) if options.all else [check_name(name) for name in options.name]
    failed = []
    for name in names:
        began = time.monotonic()
        try:
            pid = attached.restart(site, name).pid
        except Error as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
        else:
            print(f"{name}: served by process {pid} after {time.monotonic() - began:.1f} s")
    if failed:
        raise NotRestartedError(count=len(failed), names=", ".join(failed))

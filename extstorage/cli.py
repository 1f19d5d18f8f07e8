# SPDX-License-Identifier: BSD-2-Clause
"""The command archipelago: images, volumes and snapshots on a node, for the administrator."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from extstorage import apply, catalog, control, servers
from extstorage.catalog import Item
from extstorage.errors import ServerError
from extstorage.images import import_image, parse_properties
from extstorage.names import check_name
from extstorage.plan import SnapshotPlan
from extstorage.store import Store
from ganeti_plugin import __version__
from ganeti_plugin.containers import Format
from ganeti_plugin.errors import InputError

Options = argparse.Namespace
Action = Callable[[Options], None]


#: What snf-archipelago-device@.service runs; not for people, so the help does not list it.
_FOR_THE_UNIT = {"device-up": servers.set_up_loop, "device-down": servers.take_down_loop}


class NotRootError(InputError):
    template = "archipelago must be run by root"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) == 2 and given[0] in _FOR_THE_UNIT:
        _FOR_THE_UNIT[given[0]](apply.site(), check_name(given[1]))
        return 0
    options = _parser().parse_args(given)
    if os.geteuid() != 0:
        raise NotRootError
    action: Action = options.action
    action(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="archipelago", description="Thin volumes, snapshots and images.")
    parser.add_argument("--version", action="version", version=f"archipelago {__version__}")
    parser.set_defaults(action=lambda _options: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    image = _Group(commands.add_parser("image", help="disks to be cloned by new instances"))
    _add_import(image)
    image.listing("list the images", lambda options: _list(options, "image"))
    image.one("show", "show an image and its properties", lambda options: _show(options, "image"))
    image.one("remove", "remove an image; its clones keep their data", lambda options: _remove(options, "image"))
    snapshot = _Group(commands.add_parser("snapshot", help="immutable states of volumes"))
    create = snapshot.add("create", "take a snapshot of a volume, also while it is in use", _snapshot)
    create.add_argument("volume", help="the volume, as 'archipelago volume list' shows it")
    create.add_argument("name", help="the name of the snapshot; an instance is cloned with origin=NAME")
    snapshot.listing("list the snapshots", lambda options: _list(options, "snapshot"))
    snapshot.one("remove", "remove a snapshot; clones keep their data", lambda options: _remove(options, "snapshot"))
    volume = _Group(commands.add_parser("volume", help="disks of instances"))
    volume.listing("list the volumes", lambda options: _list(options, "volume"))
    volume.one("info", "show a volume", lambda options: _show(options, "volume"))
    volume.one("remove", "remove a volume that no instance needs", lambda options: _remove(options, "volume"))
    return parser


class _Group:
    """The actions on one kind of thing."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(action=lambda _options: parser.print_help())
        self._actions = parser.add_subparsers(title="actions", metavar="ACTION")

    def add(self, name: str, text: str, action: Action) -> argparse.ArgumentParser:
        parser = self._actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        parser.set_defaults(action=action)
        return parser

    def listing(self, text: str, action: Action) -> None:
        self.add("list", text, action).add_argument("--json", action="store_true", help="print JSON")

    def one(self, name: str, text: str, action: Action) -> None:
        parser = self.add(name, text, action)
        parser.add_argument("name")
        if name != "remove":
            parser.add_argument("--json", action="store_true", help="print JSON")


def _add_import(image: _Group) -> None:
    parser = image.add("import", "make an image from a file", _import)
    parser.add_argument("name", help="the name of the image; an instance is cloned with origin=NAME")
    parser.add_argument("file", type=Path, help="a disk image")
    parser.add_argument(
        *("--format", "-f"),
        default=Format.RAW.value,
        choices=[kind.value for kind in Format],
        help="what the file is; it is checked, never guessed (default: %(default)s)",
    )
    parser.add_argument(
        *("--property", "-p"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a property of the image for snf-image, such as OSFAMILY=linux; may be repeated",
    )


# Actions.


def _import(options: Options) -> None:
    properties = parse_properties(options.property)
    began = time.monotonic()
    meter = _Meter(options.name)
    import_image(apply.site(), options.name, options.file, options.format, properties, meter)
    meter.end()
    print(f"{options.name}: imported in {time.monotonic() - began:.1f} s")


class _Meter:
    """Progress on stderr: one line that changes on a terminal, a line for each tenth elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown = -1
        self._on_terminal = sys.stderr.isatty()

    def __call__(self, percent: int) -> None:
        step = percent if self._on_terminal else percent // 10 * 10
        if step > self._shown:
            self._shown = step
            ending = "\r" if self._on_terminal else "\n"
            print(f"{self._name}: {step:3d} % copied", end=ending, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on_terminal and self._shown >= 0:
            print(file=sys.stderr)


def _snapshot(options: Options) -> None:
    volume, name = check_name(options.volume, "the volume name"), check_name(options.name, "the snapshot name")
    apply.snapshot(apply.site(), SnapshotPlan(volume, name, replace=False))
    print(f"{name}: snapshot of {volume} taken")


def _remove(options: Options, kind: str) -> None:
    site = apply.site()
    with apply.using_store(site) as store:
        catalog.item(store, options.name, kind, kind)
    apply.remove(site, options.name)
    print(f"{options.name}: {kind} removed")


def _list(options: Options, kind: str) -> None:
    with apply.using_store(apply.site()) as store:
        rows = [_row(store, item) for item in catalog.items(store, kind, "broken")]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    columns = ("name", "size", "used", "origin", "created")
    _print_table([columns, *([_shown(column, row.get(column)) for column in columns] for row in rows)])
    for row in rows:
        if row.get("fault"):
            print(f"warning: {row['fault']}", file=sys.stderr)


def _show(options: Options, kind: str) -> None:
    site = apply.site()
    with apply.using_store(site) as store:
        row = dict(_row(store, catalog.item(store, options.name, kind, kind)))
    if servers.is_running(site, options.name):
        try:
            status = control.call(site.directory(options.name), options.name, "status")
            row |= {"attached": True, "mode": status["mode"], "writer": status["writer"], "pid": status["pid"]}
        except ServerError as error:
            row |= {"attached": True, "fault": str(error)}
    else:
        row["attached"] = False
    if options.json:
        print(json.dumps(row, indent=2))
        return
    for name, value in row.items():
        print(f"{name + ':':<12}{_shown(name, value)}")


def _row(store: Store, item: Item) -> Mapping[str, object]:
    """One thing for a listing or for JSON; sizes in bytes."""
    facts = item.facts
    row: dict[str, object] = {
        "name": item.name,
        "kind": item.kind,
        "size": item.size,
        "used": 0 if item.fault else catalog.used(store, item.name),
        "origin": facts.origin,
        "created": facts.created,
        "properties": dict(facts.properties),
    }
    row |= {name: value for name, value in (("cname", facts.cname), ("metadata", facts.metadata)) if value}
    return {**row, "fault": item.fault} if item.fault else row


def _shown(name: str, value: object) -> str:
    if name in ("size", "used") and isinstance(value, int):
        return _human(value)
    if name == "created" and isinstance(value, float | int):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if value else "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={text}" for key, text in value.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value not in ("", None) else "-"


def _human(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [cell.upper() for cell in row] if number == 0 else row
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())

# SPDX-License-Identifier: BSD-2-Clause
"""archipelago gc: what keeps stores in order."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from extstorage.cli.group import Options, add_command
from extstorage.cli.output import Meter, human, print_json
from extstorage.cli.place import here, stores_meant
from ganeti_plugin.errors import IntegrityError

if TYPE_CHECKING:
    from extstorage.cli.group import Commands
    from extstorage.gc import Report


class NothingFreedError(IntegrityError):
    template = "nothing was freed in the store {store}, for a map that can't be read may name anything: {reason}"
    hint = "repair it with 'archipelago fsck --repair', or remove it"


def add(commands: Commands) -> None:
    parser = add_command(commands, "gc", "give back the space that nothing needs any more", _collect, json=True)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be freed")


def _collect(options: Options) -> None:
    from extstorage import apply, gc

    site = here(options)
    reports = {}
    for name in stores_meant(site, options):
        with apply.using_store(site, name) as store:
            meter = Meter(name, "looked through")
            reports[name] = gc.collect(
                store, dry_run=options.dry_run, progress=meter if sys.stderr.isatty() else _quiet
            )
            meter.end()
        if not options.json:
            print(f"{name}: {_sentence(reports[name])}")
    if options.json:
        print_json([{"store": name, **report._asdict()} for name, report in reports.items()])
    for name, report in reports.items():
        if report.faults:
            raise NothingFreedError(store=name, reason="; ".join(report.faults))


def _quiet(_percent: int) -> None:
    """A timer's journal needs no progress."""


def _sentence(report: Report) -> str:
    if report.faults:
        return f"{len(report.faults)} of {report.maps + len(report.faults)} maps can't be read; nothing freed"
    verb = "to be " if report.dry_run else ""
    gone = f"{report.layers} layers and {report.contents} content blocks {verb}removed"
    seen = f"{report.leftovers} leftovers; {report.maps} maps, {report.seconds:.1f} s"
    return f"{human(report.freed)} {verb}freed: {gone}, {report.shrunk} layers {verb}reduced, {seen}"

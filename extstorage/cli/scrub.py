# SPDX-License-Identifier: BSD-2-Clause
"""archipelago scrub: whether what is stored is what was written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from extstorage.cli.group import Options, add_command
from extstorage.cli.maintenance import Stores
from extstorage.cli.output import Meter, human, print_json
from extstorage.cli.place import here, stores_meant
from ganeti_plugin.errors import IntegrityError

if TYPE_CHECKING:
    from extstorage.cli.group import Commands
    from extstorage.scrub import Progress, Report


class DamagedError(IntegrityError):
    template = "there are {count} damages; {hits}"
    hint = "--repair removes damaged blocks, and the next import that has them brings them back"


def add(commands: Commands) -> None:
    parser = add_command(commands, "scrub", "verify blocks by their names, maps by their checksums", _scrub, json=True)
    parser.add_argument("--repair", action="store_true", help="remove damaged blocks: errors instead of wrong data")


def _scrub(options: Options) -> None:
    from extstorage.scrub import scrub

    site = here(options)
    stores = Stores(site, stores_meant(site, options))
    reports = stores.each("verified", lambda store, meter: scrub(store, _rated(meter), repair=options.repair))
    if options.json:
        print_json([_facts(name, report) for name, report in reports.items()])
    else:
        for name, report in reports.items():
            _print(name, report)
    damage = [one for report in reports.values() for one in report.damage]
    if damage:
        hits = sorted({name for one in damage for name in one.hits})
        raise DamagedError(count=len(damage), hits=f"they hit {', '.join(hits)}" if hits else "nothing uses them")
    stores.end()


def _rated(meter: Meter) -> Progress:
    """Per cents and the rate."""
    from extstorage.names import BLOCK

    began = time.monotonic()

    def tell(done: int, total: int) -> None:
        seconds = max(0.001, time.monotonic() - began)
        meter(done * 100 // total, f", {human(int(done * BLOCK / seconds))}/s")

    return tell


def _print(name: str, report: Report) -> None:
    rate = human(int(report.bytes / max(0.001, report.seconds)))
    print(
        f"{name}: {report.blocks} blocks, {report.layers} frozen layers and {report.maps} maps verified "
        f"in {report.seconds:.1f} s ({rate}/s), {len(report.damage) or 'no'} damaged"
    )
    for one in report.damage:
        removed = " (removed)" if one.removed else ""
        print(f"  {one.what}{removed}: {one.reason}\n    hits: {', '.join(one.hits) or 'nothing'}")


def _facts(name: str, report: Report) -> dict[str, object]:
    return {"store": name, **report._asdict(), "damage": [one._asdict() for one in report.damage]}

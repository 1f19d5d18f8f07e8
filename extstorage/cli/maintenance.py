# SPDX-License-Identifier: BSD-2-Clause
"""archipelago gc, fsck and stats: what keeps stores in order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from extstorage.cli.group import Options, add_command
from extstorage.cli.items import everything
from extstorage.cli.output import Meter, human, print_json, print_rows
from extstorage.cli.place import here, stores_meant
from ganeti_plugin.errors import Error, IntegrityError, StateError

if TYPE_CHECKING:
    from extstorage.cli.group import Commands
    from extstorage.fsck import Finding
    from extstorage.gc import Report
    from extstorage.servers import Site
    from extstorage.store import Store

Result = TypeVar("Result")


class NothingFreedError(IntegrityError):
    template = "nothing was freed in the store {store}, for a map that can't be read may name anything: {reason}"
    hint = "repair it with 'archipelago fsck --repair', or remove it"


class PartlyError(StateError):
    template = "it was done in all stores but {names}"


class DamageError(IntegrityError):
    template = "{count} of {all} faults remain"
    hint = "what can't be read gives errors and never wrong data; see archipelago(8)"


def add(commands: Commands) -> None:
    parser = add_command(commands, "gc", "give back the space that nothing needs any more", _collect, json=True)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be freed")
    parser = add_command(commands, "fsck", "check volumes, snapshots and images, also in use", _check, json=True)
    added = parser.add_argument("name", nargs="?", default="", help="one of them; without, everything is checked")
    added.completer = everything  # type: ignore[attr-defined]
    parser.add_argument("--repair", action="store_true", help="do what is certain to be right, and say what is lost")
    parser = add_command(commands, "stats", "show sizes, sharing, and the I/O of attached volumes", _stats)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--prometheus", action="store_true", help="print the text format of Prometheus")


class Stores:
    """Does the same work in several stores. One that can't be used, or where others do it, keeps no other waiting."""

    def __init__(self, site: Site, names: list[str]) -> None:
        self._site = site
        self._names = names
        self._failed: list[str] = []

    def each(self, done: str, work: Callable[[Store, Meter], Result]) -> dict[str, Result]:
        from extstorage import apply

        results = {}
        for name in self._names:
            try:
                with apply.using_store(self._site, name) as store, Meter(name, done) as meter:
                    results[name] = work(store, meter)
            except Error as error:
                if len(self._names) == 1:
                    raise
                print(f"{name}: {error}", file=sys.stderr)
                self._failed.append(name)
        return results

    def end(self) -> None:
        """Raises PartlyError unless all was done."""
        if self._failed:
            raise PartlyError(names=", ".join(self._failed))


def _collect(options: Options) -> None:
    from extstorage import gc

    site = here(options)
    stores = Stores(site, stores_meant(site, options))
    reports = stores.each(
        "looked through", lambda store, meter: gc.collect(store, dry_run=options.dry_run, progress=meter)
    )
    if options.json:
        print_json([{"store": name, **report._asdict()} for name, report in reports.items()])
    else:
        for name, report in reports.items():
            print(f"{name}: {_sentence(report)}")
    for name, report in reports.items():
        if report.faults:
            raise NothingFreedError(store=name, reason="; ".join(report.faults))
    stores.end()


def _sentence(report: Report) -> str:
    if report.faults:
        return f"{len(report.faults)} of {report.maps + len(report.faults)} maps can't be read; nothing freed"
    verb = "to be " if report.dry_run else ""
    gone = f"{report.layers} layers and {report.contents} content blocks {verb}removed"
    seen = f"{report.leftovers} leftovers; {report.maps} maps, {report.seconds:.1f} s"
    return f"{human(report.freed)} {verb}freed: {gone}, {report.shrunk} layers {verb}reduced, {seen}"


def _check(options: Options) -> None:
    from extstorage import fsck
    from extstorage.names import check_name

    site = here(options)
    name = check_name(options.name) if options.name else ""
    wanted = [_home_of(site, options, name)] if name else stores_meant(site, options)
    stores = Stores(site, wanted)
    lists = stores.each("checked", lambda store, meter: fsck.check(store, name, repair=options.repair, progress=meter))
    found = [(store_name, finding) for store_name, findings in lists.items() for finding in findings]
    found += [("", finding) for finding in _check_node(site, name, options.repair)]
    if options.json:
        print_json([{"store": store_name, **finding._asdict()} for store_name, finding in found])
    else:
        for store_name, finding in found:
            print(_line(store_name, finding))
        print(f"{len(found)} findings, {sum(bool(finding.repaired) for _, finding in found)} repaired")
    left = [finding for _, finding in found if finding.damage and not finding.repaired]
    if left:
        raise DamageError(count=len(left), all=len(found))
    stores.end()


def _home_of(site: Site, options: Options, name: str) -> str:
    """The store that has it. What is attached here and in no store is looked for in the default one."""
    from extstorage import apply, attached
    from extstorage.errors import NoSuchVolumeError

    found: str = options.store or apply.find(site, name)
    if not found and name not in attached.names(site):
        raise NoSuchVolumeError(what="volume, snapshot or image", name=name, store=" or ".join(site.stores))
    return found or site.default_store


def _check_node(site: Site, name: str, repair: bool) -> list[Finding]:
    """What is under /run of volumes that nobody serves: after this node's power, it is gone."""
    from extstorage import attached
    from extstorage.run_pages import RunMarks

    dead = [one for one in attached.names(site) if name in ("", one) and attached.is_dead(site, one)]
    return [_dead(site, one, RunMarks(site.directory(one)).are_left(), repair) for one in dead]


def _dead(site: Site, name: str, marks: bool, repair: bool) -> Finding:
    from extstorage import apply
    from extstorage.fsck import Finding

    repaired = ""
    try:
        there = bool(apply.find(site, name))
        text = "its server died here" if there else "it is attached here, and in no store"
        if not there and repair:
            apply.detach(site, name)
            repaired = "detached"
        elif there and marks:
            text = "its server died here, and what that had acknowledged is not yet in the store"
            if repair:
                apply.flush_marks(site, name)
                repaired = "brought into the store"
    except Error as error:
        text = str(error)
    return Finding(name, text, repaired=repaired, damage=marks)


def _line(store_name: str, finding: Finding) -> str:
    runs = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in finding.blocks)
    where = f"{finding.name or store_name}: "
    blocks = f"; blocks of 4 MiB that can't be read: {runs}" if runs and not finding.repaired else ""
    return f"{where}{finding.text}{blocks}" + (f" [{finding.repaired}]" if finding.repaired else "")


def _stats(options: Options) -> None:
    from extstorage import attached, stats

    site = here(options)
    work = Stores(site, stores_meant(site, options))
    stores = work.each("counted", stats.of_store)
    volumes = [one for one in (attached.look(site, name) for name in attached.names(site)) if one.store in stores]
    if options.prometheus:
        print(stats.prometheus(stores, ((one.name, one.store, one.requests) for one in volumes)), end="")
    else:
        rows = [{"store": name, **found._asdict()} for name, found in stores.items()]
        _print_stats(rows, [{"name": one.name, "store": one.store, **one.requests} for one in volumes], options.json)
    work.end()


def _print_stats(stores: list[dict[str, object]], volumes: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print_json({"stores": stores, "volumes": volumes})
        return
    for rows in filter(None, (stores, volumes)):
        if rows is volumes:
            print()
        print_rows(list(rows[0]), rows)

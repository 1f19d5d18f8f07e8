# SPDX-License-Identifier: BSD-2-Clause
"""Doing what was planned. Everything may be repeated, in any order, after an interruption at any point."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from extstorage import answer, catalog, control, run_pages, servers
from extstorage.errors import BadSizeError, BrokenError, NoSuchVolumeError, ServerError
from extstorage.files_store import FilesStore, create_store, open_store
from extstorage.identity import acting_as
from extstorage.names import check_name
from extstorage.plan import AttachPlan, CreatePlan, Device, GrowPlan, SnapshotPlan
from extstorage.servers import Site
from extstorage.session import Session
from extstorage.store import Info
from ganeti_plugin import config
from ganeti_plugin.errors import StateError


class NoDataToReuseError(StateError):
    template = "no volume is named {name!r} or belongs to the disk {cname!r}, so there is no data to reuse"


def site() -> Site:
    """This node, as configured."""
    settings = config.load().archipelago
    return Site(settings.store_directory, settings.user)


@contextlib.contextmanager
def using_store(site: Site) -> Iterator[FilesStore]:
    """The store, as its user; made when it is not there."""
    with acting_as(site.user):
        yield create_store(site.store) if not (site.store / "store.json").exists() else open_store(site.store)


def create(site: Site, plan: CreatePlan) -> None:
    with using_store(site) as store:
        if not plan.adopt:
            catalog.create_volume(store, plan.volume, plan.size, origin=plan.origin, cname=plan.cname)
        elif not catalog.adopt(store, plan.volume, plan.size, plan.cname):
            raise NoDataToReuseError(name=plan.volume, cname=plan.cname)


def attach(site: Site, plan: AttachPlan) -> str:
    """Answers with what attach prints. A volume that is there in any shape can be attached, or Ganeti would leak it."""
    if not servers.is_running(site, plan.volume):
        with using_store(site) as store:
            if not store.exists(plan.volume):
                raise NoSuchVolumeError(what="volume or snapshot", name=plan.volume, store=store.title)
        servers.start(site, plan.volume)
    device = servers.start_device(site, plan.volume) if plan.device is Device.LOOP else ""
    return answer.text(device, str(site.socket(plan.volume)) if plan.uri else "")


def detach(site: Site, name: str) -> None:
    """Take device and server away, and leave nothing under /run once everything is flushed."""
    check_name(name)
    servers.stop_device(site, name)
    directory = site.directory(name)
    if not directory.is_dir():
        return
    servers.stop(site, name)
    _flush_marks(site, name, directory)
    servers.remove_directory(site, name)


def call_server(site: Site, name: str, command: str, /, **arguments: object) -> None:
    """Ask the server of a volume that is attached on this node."""
    control.call(site.directory(name), name, command, **arguments)


def remove_stopped(site: Site, name: str) -> None:
    """Remove a volume whose server has ended already."""
    with using_store(site) as store:
        catalog.remove(store, name)


def _flush_marks(site: Site, name: str, directory: Path) -> None:
    """A server that was killed left marks of what it had acknowledged: bring them into the store."""
    with using_store(site) as store:
        if run_pages.are_left(directory) and store.exists(name):
            try:
                session = Session(store, name, directory)
            except BrokenError:
                return
            session.open(True)
            session.shutdown()


def remove(site: Site, name: str) -> None:
    detach(site, name)
    with using_store(site) as store:
        catalog.remove(store, name)


def grow(site: Site, plan: GrowPlan) -> None:
    with using_store(site) as store:
        size = store.read_heads(plan.volume).size
    if plan.size < size:
        raise BadSizeError(size=plan.size, reason=f"the volume has {size} bytes and can't shrink")
    if servers.is_running(site, plan.volume):
        control.call(site.directory(plan.volume), plan.volume, "grow", size=plan.size)
        return
    with _offline(site, plan.volume) as session:
        session.grow(plan.size)


def snapshot(site: Site, plan: SnapshotPlan) -> None:
    """Of a volume in use, its server does it between two requests; else we do it here."""
    facts = Info(created=time.time(), origin=plan.volume)
    if plan.replace:
        _remove_old_snapshot(site, plan)
    if servers.is_running(site, plan.volume):
        control.call(site.directory(plan.volume), plan.volume, "snapshot", name=plan.name, facts=facts._asdict())
        return
    with _offline(site, plan.volume) as session:
        session.snapshot(plan.name, facts)


def _remove_old_snapshot(site: Site, plan: SnapshotPlan) -> None:
    with using_store(site) as store:
        if not store.exists(plan.name):
            return
        old = store.read_info(plan.name)
        ours = old.origin == plan.volume and not old.image and store.read_heads(plan.name).read_only
    if ours:
        remove(site, plan.name)


@contextlib.contextmanager
def _offline(site: Site, name: str) -> Iterator[Session]:
    """The volume, opened in this process: its server does not run here."""
    directory = site.directory(name)
    with using_store(site) as store:
        session = Session(store, name, directory if directory.is_dir() else None)
        session.open(True)
        try:
            yield session
        finally:
            session.shutdown()


def open_volume(site: Site, name: str, exclusive: bool) -> None:
    check_name(name)
    servers.start(site, name)
    try:
        control.call(site.directory(name), name, "open", exclusive=exclusive)
    except ServerError:
        if control.call(site.directory(name), name, "status")["mode"] != "broken":
            raise


def close_volume(site: Site, name: str) -> None:
    """On a node that has nothing of the volume there is nothing to close, and no holder is disturbed."""
    check_name(name)
    if servers.is_running(site, name):
        control.call(site.directory(name), name, "close")
    elif run_pages.are_left(site.directory(name)):
        _flush_marks(site, name, site.directory(name))


def set_metadata(site: Site, name: str, metadata: str) -> None:
    with using_store(site) as store, store.locked():
        store.write_info(name, store.read_info(name)._replace(metadata=metadata))


def verify(site: Site, name: str) -> None:
    """Ganeti has never called this; it checks that the store is there and the volume's map is sound."""
    with using_store(site) as store:
        store.read_map(check_name(name))

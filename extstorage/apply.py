# SPDX-License-Identifier: BSD-2-Clause
"""Doing what was planned. Everything may be repeated, in any order, after an interruption at any point."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from extstorage import answer, attached, catalog, control, devices, servers, space, specs, stores
from extstorage.errors import (
    BadSizeError,
    BrokenError,
    DoubtfulError,
    FullStoreError,
    HeldError,
    NoDeviceError,
    NoSuchVolumeError,
    ReadOnlyStoreError,
    UnknownOriginError,
    UnreachableStoreError,
    why_unusable,
)
from extstorage.identity import acting_as
from extstorage.maps import VolumeMap
from extstorage.modes import Mode, leave_mode, was_served
from extstorage.names import check_name
from extstorage.plan import AttachPlan, CreatePlan, Device, GrowPlan, SnapshotPlan
from extstorage.references import HASH
from extstorage.run_pages import RunMarks
from extstorage.servers import Site
from extstorage.store import Info, Store
from ganeti_plugin import config
from ganeti_plugin.errors import Error, InputError, StateError
from ganeti_plugin.log import warning

if TYPE_CHECKING:
    from extstorage.session import Session


class NoDataToReuseError(StateError):
    template = "no volume is named {name!r} or belongs to the disk {cname!r}, so there is no data to reuse"


class AmbiguousReuseError(StateError):
    template = "several volumes belong to the disk {cname!r}: {names}"
    hint = "remove those that are not wanted: archipelago volume remove NAME"


def site() -> Site:
    """This node, as configured."""
    settings = config.load().archipelago
    return Site(settings.stores, settings.default_store, settings.user, settings.pithos)


@contextlib.contextmanager
def using_store(site: Site, name: str = "", *, make: bool = False) -> Iterator[Store]:
    """The store of that name, or else the default one, as its user.

    Raises FullStoreError and ReadOnlyStoreError where something could not be written.
    """
    name = name or site.default_store
    with acting_as(site.user):
        store = stores.open_store(specs.spec_of(site.stores, name), make, pithos=site.pithos)
        try:
            yield store
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FullStoreError(store=name) from None
            if error.errno == errno.EROFS:
                raise ReadOnlyStoreError(store=name, path=error.filename or site.stores[name]) from None
            raise
        finally:
            store.close()


def find(site: Site, volume: str, wanted: str = "") -> str:
    """The name of the store that has a volume, snapshot or image; "" when none has it.

    First the one that serves it, then the wanted one, the default, and all others, for the disk parameter may have been
    changed since. Raises UnreachableStoreError when it may be in a store that can't be asked, or that this node does
    not know (any more).
    """
    faults: list[UnreachableStoreError] = []
    for name in _candidates(site, volume, wanted):
        try:
            with using_store(site, name) as store:
                there = store.exists(volume)
        except (Error, OSError) as error:
            faults.append(UnreachableStoreError(name=name, reason=why_unusable(error)))
            continue
        if there:
            for fault in faults:
                warning("%s", fault)
            return name
    if faults:
        raise faults[0]
    for name in filter(None, _likely(site, volume, wanted)):
        try:
            specs.spec_of(site.stores, name)
        except InputError as error:
            raise UnreachableStoreError(name=name, reason=error) from None
    return ""


def _likely(site: Site, volume: str, wanted: str) -> tuple[str, ...]:
    return servers.recorded_store(site, volume), wanted, site.default_store


def _candidates(site: Site, volume: str, wanted: str) -> list[str]:
    return [name for name in dict.fromkeys((*_likely(site, volume, wanted), *site.stores)) if name in site.stores]


@contextlib.contextmanager
def using_store_of(site: Site, volume: str, wanted: str = "") -> Iterator[Store]:
    """The store that has the volume; raises NoSuchVolumeError when none has it."""
    name = find(site, volume, wanted)
    if not name:
        raise _no_such_volume(site, volume)
    with using_store(site, name) as store:
        yield store


def _no_such_volume(site: Site, volume: str) -> NoSuchVolumeError:
    return NoSuchVolumeError(what="volume, snapshot or image", name=volume, store=" or ".join(site.stores))


def usages(site: Site) -> list[space.Usage]:
    """How full the stores are; those that can't be asked are among them, with the reason."""
    found = []
    for name in site.stores:
        try:
            with using_store(site, name) as store:
                found.append(space.Usage(name, store.space()))
        except (Error, OSError) as error:
            found.append(space.Usage(name, None, why_unusable(error)))
    return found


def create(site: Site, plan: CreatePlan) -> None:
    """A clone is made where its origin is, unless the disk names a store."""
    devices.check(site, plan.device)
    if plan.adopt:
        _adopt(site, plan)
        return
    foreign = _foreign_origin(site, plan)
    elsewhere = plan.origin and not foreign and not plan.store and len(site.stores) > 1
    home = find(site, plan.origin) if elsewhere else plan.store
    if elsewhere and not home:
        raise UnknownOriginError(name=plan.origin, store=" or ".join(site.stores))
    with using_store(site, home) as store:
        if not store.exists(plan.volume):
            space.check_room(store)
        catalog.create_volume(store, plan.volume, plan.size, origin=plan.origin, cname=plan.cname, foreign=foreign)


def _foreign_origin(site: Site, plan: CreatePlan) -> Callable[[], VolumeMap] | None:
    """What reads the map of an origin that is a file of Pithos. An image of ours that is called alike is preferred."""
    wanted = plan.pithos
    if wanted is None:
        return None
    is_plain = wanted.name == plan.origin and not HASH.fullmatch(wanted.name)
    if wanted.name == plan.origin and ((is_plain and not site.pithos) or find(site, plan.origin)):
        return None
    from extstorage.pithos import NoSuchMapError, Pithos

    def read() -> VolumeMap:
        try:
            return Pithos(site.pithos).origin_map(wanted)
        except NoSuchMapError:
            if is_plain:
                raise UnknownOriginError(name=plan.origin, store=" or ".join(site.stores)) from None
            raise

    return read


def _adopt(site: Site, plan: CreatePlan) -> None:
    """Give Ganeti's new disk the volume of that name, or else the one that an earlier disk of that disk name had."""
    found = find(site, plan.volume, plan.store)
    if found:
        with using_store(site, found) as store:
            catalog.check_size_of(store, plan.volume, plan.size)
        return
    homes = [(name, old) for name in _candidates(site, "", plan.store) for old in _of_disk_name(site, name, plan.cname)]
    if not homes:
        raise NoDataToReuseError(name=plan.volume, cname=plan.cname)
    if len(homes) > 1:
        raise AmbiguousReuseError(cname=plan.cname, names=" and ".join(old for _, old in homes))
    name, old = homes[0]
    if servers.is_running(site, old):
        raise HeldError(name=old, holder="this node, where it is attached")
    detach(site, old)  # a server that was killed may have left what it had acknowledged
    with using_store(site, name) as store:
        catalog.adopt(store, old, plan.volume, plan.size)


def _of_disk_name(site: Site, name: str, cname: str) -> list[str]:
    if not cname:
        return []
    with using_store(site, name) as store:
        return catalog.of_disk_name(store, cname)


def attach(site: Site, plan: AttachPlan) -> str:
    """Answers with what attach prints. A volume that is there in any shape can be attached, or Ganeti would leak it.

    So is one whose store can't be asked: its server answers with errors, and a removal then fails instead of leaking.
    Such a server is replaced each time, and a device with it, for the volume may have come back.
    """
    if answer.is_faulty(str(site.directory(plan.volume))):
        devices.stop_device(site, plan.volume)
        servers.stop(site, plan.volume)
    if not servers.is_running(site, plan.volume):
        fault = ""
        try:
            name = find(site, plan.volume, plan.store)
        except UnreachableStoreError as error:
            name, fault = str(error.name), str(error)
        if not name:
            raise _no_such_volume(site, plan.volume)
        servers.start(site, plan.volume, name, fault)
    shown = plan.device is not Device.NONE
    device = devices.start_device(site, plan.volume, plan.device) if shown else ""
    return answer.text(device, str(site.socket(plan.volume)) if plan.uri else "")


def detach(site: Site, name: str) -> None:
    """Take device and server away, and leave nothing under /run once everything is flushed."""
    check_name(name)
    devices.stop_device(site, name)
    directory = site.directory(name)
    if not directory.is_dir():
        return
    servers.stop(site, name)
    flush_marks(site, name)
    servers.remove_directory(site, name)


def flush_marks(site: Site, name: str) -> None:
    """A server that was killed left marks of what it had acknowledged: bring them into the store."""
    directory = site.directory(name)
    found = RunMarks(directory).are_left() and find(site, name)
    if not found:
        return
    from extstorage.session import Session

    with using_store(site, found) as store:
        try:
            session = Session(store, name, directory)
            session.open(True)
            session.shutdown()
        except (BrokenError, DoubtfulError) as error:
            warning("%s", error)
        except HeldError as error:
            warning("%s, so what was not flushed here is void", error)


def remove(site: Site, name: str, store_name: str = "") -> None:
    """Removing what is nowhere is success; not so when it may be in a store that can't be asked.

    What a killed server acknowledged need not get into the store first, which may be full; it is kept until the volume
    is gone.
    """
    check_name(name)
    devices.stop_device(site, name)
    if site.directory(name).is_dir():
        servers.stop(site, name)
    found = find(site, name, store_name)
    if found:
        with using_store(site, found) as store:
            catalog.remove(store, name)
    servers.remove_directory(site, name)


def grow(site: Site, plan: GrowPlan) -> None:
    with using_store_of(site, plan.volume, plan.store) as store:
        size = store.read_heads(plan.volume).size
    if plan.size < size:
        raise BadSizeError(size=plan.size, reason=f"the volume has {size} bytes and can't shrink")
    if servers.is_running(site, plan.volume):
        control.call(site.directory(plan.volume), plan.volume, "grow", size=plan.size)
        devices.resize_device(site, plan.volume, plan.size)
        return
    with _offline(site, plan.volume, plan.store) as session:
        session.grow(plan.size)


def snapshot(site: Site, plan: SnapshotPlan, facts: Info | None = None) -> None:
    """Of a volume in use, its server does it between two requests; else we do it here.

    `facts` are what is kept beside it, if that is not to be what is kept beside the volume.
    """
    is_running = servers.is_running(site, plan.volume)
    if plan.replace:
        if is_running:
            # The server answers one call after the other: what a killed script asked it for is done then, and is seen.
            control.call(site.directory(plan.volume), plan.volume, "status")
        _remove_old_snapshot(site, plan)
    if is_running:
        kept = facts._asdict() if facts else None
        control.call(site.directory(plan.volume), plan.volume, "snapshot", name=plan.name, facts=kept)
        return
    with _offline(site, plan.volume, plan.store) as session:
        session.snapshot(plan.name, facts)


def properties(site: Site, name: str) -> Mapping[str, str]:
    """What was kept beside the image that a volume comes from: for snf-image, and for what is made of the volume."""
    with using_store_of(site, name) as store:
        return store.read_info(name).properties


def _remove_old_snapshot(site: Site, plan: SnapshotPlan) -> None:
    with using_store_of(site, plan.volume, plan.store) as store:
        if not store.exists(plan.name):
            return
        try:
            old = store.read_info(plan.name)
            ours = old.origin == plan.volume and not old.image and store.read_heads(plan.name).read_only
        except BrokenError:
            ours = True
    if ours:
        remove(site, plan.name, plan.store)


@contextlib.contextmanager
def _offline(site: Site, name: str, store_name: str) -> Iterator[Session]:
    """The volume, opened in this process: its server does not run here."""
    from extstorage.session import Session

    directory = site.directory(name)
    with using_store_of(site, name, store_name) as store:
        session = Session(store, name, directory if directory.is_dir() else None)
        session.open(True)
        try:
            yield session
        finally:
            session.shutdown()


def check_device(site: Site, plan: AttachPlan) -> None:
    """Raises NoDeviceError when attach had to do without the block device that the disk needs."""
    if plan.device is not Device.NONE and not devices.device_of(site, plan.volume):
        raise NoDeviceError(name=plan.volume, reason="the system log says why attach could not")


def open_volume(site: Site, name: str, exclusive: bool, store_name: str = "") -> None:
    """A volume that can't be read is refused: no guest shall start with it."""
    check_name(name)
    if not servers.is_running(site, name):
        found = find(site, name, store_name)
        if not found:
            raise _no_such_volume(site, name)
        servers.start(site, name, found)
    control.call(site.directory(name), name, "open", exclusive=exclusive)


def close_volume(site: Site, name: str) -> None:
    """On a node that has nothing of the volume there is nothing to close, and no holder is disturbed.

    A server that has just died comes back, and if it came back as what it was, it would take the volume from the other
    side of a migration. So it is waited for; one that stays away is to be closed when it comes.
    """
    directory = site.directory(check_name(name))
    if not directory.is_dir():
        return
    if not attached.is_dead(site, name):
        control.call(directory, name, "close")
        return
    flush_marks(site, name)
    with acting_as(site.user):
        if was_served(directory):
            leave_mode(directory, Mode.CLOSED)


def set_metadata(site: Site, name: str, metadata: str, store_name: str = "") -> None:
    with using_store_of(site, name, store_name) as store, store.locked():
        store.write_info(name, store.read_info(name)._replace(metadata=metadata))


def verify(site: Site, name: str, store_name: str = "") -> None:
    """Ganeti has never called this; it checks that the store is there and the volume's map is sound."""
    with using_store_of(site, name, store_name) as store:
        store.read_map(check_name(name))

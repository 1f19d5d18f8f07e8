# SPDX-License-Identifier: BSD-2-Clause
"""A golden image of a machine's disk: snapshot, clone, generalize the clone, hash its snapshot: the image.

The machine may go on running: what it has on its disk at one point in time is copied by a map, and never written. The
node does not look into the copy either: snf-image, which is no part of this provider, has its helper VM do that, and is
asked by its command: docs/architecture.md tells the contract.

Whatever goes wrong, nothing temporary is left; after kill -9, the next publication of that name cleans up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from extstorage import apply, catalog, gallery, hashing, intake
from extstorage.catalog import Item
from extstorage.errors import AlreadyThereError, HeldError
from extstorage.names import PUBLICATION, check_name
from extstorage.plan import AttachPlan, CreatePlan, Device, SnapshotPlan
from extstorage.progress import Progress
from extstorage.servers import Site
from extstorage.store import Info
from ganeti_plugin.errors import CommandError, InputError, StateError
from ganeti_plugin.files import LockedError, locked
from ganeti_plugin.run import run

SNF_IMAGE = Path("/usr/bin/snf-image")

#: Not in /run/lock, where any user can make a file and hold its lock.
LOCKS = Path("/run/snf-archipelago-publish")

_BASE = ".base"
_IMAGE = ".image"

#: Seconds: the helper VM may wait an hour for its turn, and then has the time that is configured, a day at most.
_GENERALIZE_TIMEOUT = 26 * 3600.0

#: What Ganeti tells with setinfo, once an instance has a disk.
_OWNED_BY = "originstname+"

Tell = Callable[[str], None]


class UnknownSourceError(InputError):
    template = "{source!r} is neither a volume, snapshot or image nor an instance with a disk of this provider"
    hint = "'archipelago volume list' shows the volumes"


class WhichDiskError(InputError):
    template = "the instance {instance!r} has {count} disks that this may mean: {names}"
    hint = "name one: INSTANCE:DISK, or the volume"


class BusyNameError(StateError):
    template = "an image {name!r} is being published on this node right now"


class NotGeneralizedError(StateError):
    template = "no image was made of {source}, since its copy can't be generalized: {reason}"
    hint = "--as-is makes an image of it with all its keys and identities"


class ElsewhereError(StateError):
    template = "{name} is in use by {holder}"
    hint = "publish it there, or stop the instance"


class Wanted(NamedTuple):
    """What to make of which volume."""

    source: str
    name: str
    #: They override, name by name, what was kept beside the image that the source was cloned from.
    properties: Mapping[str, str]
    #: Whether to leave the copy as it is, keys and all.
    as_is: bool = False
    keep_logins: bool = False


def publish(site: Site, wanted: Wanted, tell: Tell, progress: Progress) -> Mapping[str, object]:
    """Make the image; answers with its facts and what was removed from the copy. `tell` is told what is being done."""
    check_name(wanted.name, "the image name", room=len(hashing.PREFIX) + len(PUBLICATION) + len(_IMAGE))
    LOCKS.mkdir(mode=0o700, exist_ok=True)
    try:
        with locked(LOCKS / f"{wanted.name}.lock", timeout=0):
            return _publish(site, wanted, tell, progress)
    except LockedError:
        raise BusyNameError(name=wanted.name) from None


def _publish(site: Site, wanted: Wanted, tell: Tell, progress: Progress) -> Mapping[str, object]:
    store_name, source = find_source(site, wanted.source)
    with apply.using_store(site, store_name) as store:
        if store.exists(wanted.name):
            kind = catalog.item(store, wanted.name, "image", *catalog.KINDS).kind
            raise AlreadyThereError(name=wanted.name, store=store.title, what=kind)
    properties = {**source.facts.properties, **wanted.properties}
    copy = f"{PUBLICATION}{wanted.name}"
    _remove(site, copy, store_name)
    try:
        tell(f"taking a copy of {source.name}")
        _clone(site, source, copy, store_name)
        found = {} if wanted.as_is else _generalize(site, copy, store_name, wanted, properties, tell)
        tell(f"keeping it as {wanted.name}")
        facts = Info(created=time.time(), origin=source.name, image=True, properties=properties)
        apply.snapshot(site, SnapshotPlan(copy, f"{copy}{_IMAGE}", replace=False, store=store_name), facts)
        with apply.using_store(site, store_name) as store:
            root = hashing.hash_snapshot(store, f"{copy}{_IMAGE}", progress)
            gallery.rename(store, f"{copy}{_IMAGE}", wanted.name)
    finally:
        _remove(site, copy, store_name)
    return {
        "name": wanted.name,
        "source": source.name,
        "store": store_name,
        "size": source.size,
        "hash": root.hex(),
        "properties": properties,
        "generalized": found,
    }


def _remove(site: Site, copy: str, store_name: str) -> None:
    for ending in ("", _BASE, _IMAGE):
        apply.remove(site, f"{copy}{ending}", store_name)
    with apply.using_store(site, store_name) as store:
        intake.clear(store, f"{hashing.PREFIX}{copy}{_IMAGE}")


def _clone(site: Site, source: Item, copy: str, store_name: str) -> None:
    """A volume that begins as the source is at one point in time. A snapshot or image is such a point already."""
    origin = source.name
    if source.kind == "volume":
        origin = f"{copy}{_BASE}"
        try:
            apply.snapshot(site, SnapshotPlan(source.name, origin, replace=False, store=store_name))
        except HeldError as error:
            raise ElsewhereError(name=source.name, holder=error.holder) from None
    apply.create(site, CreatePlan(copy, source.size, origin, cname="", adopt=False, store=store_name))


def _generalize(
    site: Site, copy: str, store_name: str, wanted: Wanted, properties: Mapping[str, str], tell: Tell
) -> Mapping[str, str]:
    """Have snf-image's helper VM remove from the copy what was one machine's alone."""
    tell("removing what was that machine's alone")
    uri = apply.attach(site, AttachPlan(copy, Device.NONE, uri=True, store=store_name)).partition("\nkvm:")[2]
    apply.open_volume(site, copy, exclusive=True, store_name=store_name)
    partition = properties.get("ROOT_PARTITION", "").strip()
    options = [f"--root-partition={partition}"] if partition else []
    options += ["--keep-logins"] if wanted.keep_logins else []
    try:
        done = run([SNF_IMAGE, "generalize", "--json", *options, uri], timeout=_GENERALIZE_TIMEOUT)
    except CommandError as error:
        said = str(error.detail).rpartition("error: snf-image: ")[2]
        reason = said if SNF_IMAGE.exists() else "the package snf-image is not installed"
        raise NotGeneralizedError(source=wanted.source, reason=reason) from None
    return {str(name): str(value) for name, value in json.loads(done.stdout).items()}


def find_source(site: Site, source: str) -> tuple[str, Item]:
    """The store and the volume that somebody means by its name, or by INSTANCE or INSTANCE:DISK."""
    instance, _, number = source.partition(":")
    if not number and (store_name := apply.find(site, check_name(source, "the source"))):
        with apply.using_store(site, store_name) as store:
            return store_name, catalog.item(store, source, "volume, snapshot or image", *catalog.KINDS)
    found = [(store_name, item) for store_name in site.stores for item in _disks_of(site, store_name, instance)]
    if number:
        found = [pair for pair in found if pair[1].name.endswith(f".disk{number}")]
    if not found:
        raise UnknownSourceError(source=source)
    if len(found) > 1:
        names = ", ".join(item.name for _, item in found)
        raise WhichDiskError(instance=instance, count=len(found), names=names)
    return found[0]


def _disks_of(site: Site, store_name: str, instance: str) -> list[Item]:
    """The volumes of which Ganeti said that they are this instance's. Metadata is the same on every node."""
    with apply.using_store(site, store_name) as store:
        return [item for item in catalog.items(store, "volume") if item.facts.metadata == f"{_OWNED_BY}{instance}"]

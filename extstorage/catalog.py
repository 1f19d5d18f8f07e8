# SPDX-License-Identifier: BSD-2-Clause
"""What there is in a store, and how volumes, snapshots and images come and go. Everything here is a matter of maps.

Each change runs under the store's lock, so that no block is collected between the moment that a map is read and the
moment that its copy is written.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from extstorage import maps
from extstorage.errors import (
    AlreadyThereError,
    BrokenError,
    NoSuchVolumeError,
    NotAnOriginError,
    SmallerThanOriginError,
    UnknownOriginError,
)
from extstorage.maps import DEPTH, Source, VolumeMap
from extstorage.names import MEBIBYTE, check_name, check_size
from extstorage.store import Info, Store
from ganeti_plugin.log import info, warning


class Item(NamedTuple):
    """One line of a listing."""

    name: str
    kind: str
    size: int
    epoch: int
    facts: Info
    fault: str = ""


def kind_of(head: VolumeMap, facts: Info) -> str:
    """What a map is called: an image is a snapshot that was given a place in the list of images."""
    if not head.read_only:
        return "volume"
    return "image" if facts.image else "snapshot"


def create_volume(store: Store, name: str, size: int, *, origin: str = "", cname: str = "") -> None:
    """Make an empty volume, or a clone of a snapshot or image. Repeating the same call changes nothing."""
    check_name(name, "the volume name")
    check_size(size)
    with store.locked():
        facts = Info(created=time.time(), origin=origin, cname=cname)
        if store.exists(name):
            _check_same(store, name, size, facts)
            return
        owner = uuid.uuid4().bytes
        if origin:
            new = maps.clone(_origin_map(store, origin, size), size, owner)
            # Its own copy: the image may be removed while the clone lives.
            facts = facts._replace(properties=store.read_info(origin).properties)
        else:
            new = maps.empty(size, owner)
        store.create(name, new, facts)
    info("%s: created, %d bytes%s", name, size, f", a clone of {origin}" if origin else "")


def _check_same(store: Store, name: str, size: int, facts: Info) -> None:
    head, old = store.read_heads(name), store.read_info(name)
    if head.read_only or head.size != size or old.origin != facts.origin:
        what = f"{kind_of(head, old)} of {head.size} bytes" + (f" with the origin {old.origin!r}" if old.origin else "")
        raise AlreadyThereError(name=name, store=store.title, what=what)


def _origin_map(store: Store, origin: str, size: int) -> VolumeMap:
    check_name(origin, "the origin")
    if not store.exists(origin):
        raise UnknownOriginError(name=origin, store=store.title)
    head = store.read_heads(origin)
    if not head.read_only:
        raise NotAnOriginError(name=origin)
    if size < head.size:
        mebibytes = -(-head.size // MEBIBYTE)
        raise SmallerThanOriginError(size=size, origin=origin, minimum=head.size, mebibytes=mebibytes)
    return store.read_map(origin)


def adopt(store: Store, name: str, size: int, cname: str) -> bool:
    """For `reuse_data`: give an existing, unused volume the name by which Ganeti now calls it.

    It is the volume of that name, or the one that Ganeti's disk name was given to. Answers whether there was one.
    """
    check_name(name, "the volume name")
    with store.locked():
        if not store.exists(name):
            old = cname and next((other for other in store.names() if _has_cname(store, other, cname)), "")
            if not old:
                return False
            lock = store.lock_volume(old)
            try:
                store.rename(old, name)
            finally:
                lock.release()
            info("%s: adopted, was %s", name, old)
        head = store.read_heads(name)
        if head.read_only or head.size != size:
            raise AlreadyThereError(name=name, store=store.title, what=f"volume of {head.size} bytes, not {size}")
    return True


def _has_cname(store: Store, name: str, cname: str) -> bool:
    try:
        return store.read_info(name).cname == cname and not store.read_heads(name).read_only
    except BrokenError:
        return False


def remove(store: Store, name: str) -> int:
    """Remove a volume, snapshot or image, and free the blocks that only it had; answers with the bytes freed.

    Removing what is not there is success. Raises HeldError when a server uses it.
    """
    check_name(name)
    with store.locked():
        if not store.exists(name):
            return 0
        lock = store.lock_volume(name)
        try:
            try:
                before = store.read_heads(name)
                suspects = {*before.sources, before.current}
            except BrokenError as error:
                warning("%s; removing it all the same", error)
                suspects = set()
            store.remove(name)
        finally:
            lock.release()
        freed = collect(store, suspects)
    info("%s: removed, %d MiB freed", name, freed // MEBIBYTE)
    return freed


def collect(store: Store, suspects: Iterable[Source]) -> int:
    """Free the layers that no map names, and, of the layers in `suspects`, the blocks that no map names.

    Called with the store's lock held. Every map must be readable: with a broken one, nothing can be called garbage.
    """
    heads: dict[str, VolumeMap] = {}
    try:
        heads = {name: store.read_heads(name) for name in store.names()}
    except BrokenError as error:
        warning("%s; no space is freed until it is removed or repaired", error)
        return 0
    current = {head.current for head in heads.values() if not head.read_only}
    live = current | {source for head in heads.values() for source in head.sources}
    freed = sum(store.remove_layer(source) for source in list(store.layers()) if source not in live)
    partial = {source for source in suspects if source in live and source not in current}
    if partial:
        freed += _free_blocks(store, heads, partial)
    return freed


def _free_blocks(store: Store, heads: Mapping[str, VolumeMap], suspects: set[Source]) -> int:
    keep: dict[Source, set[int]] = {source: set() for source in suspects}
    try:
        for name, head in heads.items():
            if not suspects.isdisjoint(head.sources):
                _mark(store.read_map(name), keep)
    except BrokenError as error:
        warning("%s; no space is freed until it is removed or repaired", error)
        return 0
    return sum(store.free_blocks(source, frozenset(indexes)) for source, indexes in keep.items())


def _mark(volume_map: VolumeMap, keep: Mapping[Source, set[int]]) -> None:
    wanted = {number: keep[source] for number, source in enumerate(volume_map.sources, 1) if source in keep}
    for position, number in enumerate(volume_map.entries):
        if number in wanted:
            wanted[number].add(position // DEPTH)


def items(store: Store, *kinds: str) -> list[Item]:
    """What there is, of the given kinds; what is broken is listed with its fault."""
    found = []
    for name in store.names():
        try:
            head, facts = store.read_heads(name), store.read_info(name)
        except NoSuchVolumeError:
            continue
        except BrokenError as error:
            found.append(Item(name, "broken", 0, 0, Info(created=0.0), str(error)))
            continue
        if not kinds or kind_of(head, facts) in kinds:
            found.append(Item(name, kind_of(head, facts), head.size, head.epoch, facts))
    return found


def item(store: Store, name: str, what: str, *kinds: str) -> Item:
    """One of them; raises NoSuchVolumeError when there is none of these kinds."""
    found = check_name(name) in store.names() and [one for one in items(store, *kinds, "broken") if one.name == name]
    if not found:
        raise NoSuchVolumeError(what=what, name=name, store=store.title)
    return found[0]


def used(store: Store, name: str) -> int:
    """The bytes in the layer that a volume writes now, since its last snapshot; of a snapshot, in all its layers."""
    head = store.read_heads(name)
    return sum(store.used(source) for source in (head.sources if head.read_only else (head.current,)))

# SPDX-License-Identifier: BSD-2-Clause
"""What there is in a store, and how volumes, snapshots and images come and go. Everything here is a matter of maps.

Each change runs under the store's lock, so that names of layers are never copied while the collection (gc.py) takes its
last look.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from extstorage import maps
from extstorage.errors import (
    AlreadyThereError,
    BrokenError,
    HeldError,
    NoSuchVolumeError,
    NotAnOriginError,
    OtherKindError,
    SmallerThanOriginError,
    UnknownOriginError,
    WithdrawnError,
)
from extstorage.maps import DIGEST, Source, VolumeMap
from extstorage.names import MEBIBYTE, check_name, check_size, new_id
from extstorage.store import Holder, Info, Store, VolumeLock
from ganeti_plugin.log import info, warning

#: What `kind_of` answers with.
KINDS = ("volume", "snapshot", "image")

#: Content blocks of an image whose size is asked for.
_SAMPLE = 1024

#: Seconds for freeing a volume's data at once: Ganeti waits, but not for ever, and a collection frees the rest.
_REMOVAL = 120.0

#: Nobody reads more.
_MOST_COMPLETIONS = 500


class Item(NamedTuple):
    """One line of a listing."""

    name: str
    #: One of `KINDS`, or "broken".
    kind: str
    #: Bytes.
    size: int
    facts: Info
    #: Why it can't be read, or empty.
    fault: str = ""


def kind_of(head: VolumeMap, facts: Info) -> str:
    """What a map is called: an image is a snapshot that was given a place in the list of images."""
    if not head.read_only:
        return "volume"
    return "image" if facts.image else "snapshot"


def create_volume(
    store: Store,
    name: str,
    size: int,
    *,
    origin: str = "",
    cname: str = "",
    foreign: Callable[[], VolumeMap] | None = None,
) -> None:
    """Make an empty volume, or a clone of a snapshot or image. Repeating the same call changes nothing.

    `foreign` answers with the map of an origin that is in no store of ours.
    """
    check_name(name, "the volume name")
    check_size(size)
    with store.locked():
        facts = Info(created=time.time(), origin=origin, cname=cname)
        if store.exists(name):
            _check_same(store, name, size, facts)
            # It may be there because a creation failed at its last step.
            store.settle_map(name)
            return
        store.check_size(size)
        owner = new_id()
        if foreign is not None:
            store.create(name, maps.clone(_large_enough(foreign(), origin, size), size, owner), facts)
        elif origin:
            found, kept = _origin(store, origin, size)
            # Its own copy of the properties, too: the image may be removed while the clone lives.
            facts = facts._replace(properties=kept.properties)
            store.create_copy(name, origin, maps.clone(found, size, owner), facts)
        else:
            store.create(name, maps.empty(size, owner), facts)
    info("%s: created, %d bytes%s", name, size, f", a clone of {origin}" if origin else "")


def _check_same(store: Store, name: str, size: int, facts: Info) -> None:
    head, old = store.read_heads(name), store.read_info(name)
    if head.read_only or head.size != size or old.origin != facts.origin:
        what = f"{kind_of(head, old)} of {head.size} bytes" + (f" with the origin {old.origin!r}" if old.origin else "")
        raise AlreadyThereError(name=name, store=store.title, what=what)


def _origin(store: Store, origin: str, size: int) -> tuple[VolumeMap, Info]:
    check_name(origin, "the origin")
    try:
        found = store.read_heads(origin)
    except NoSuchVolumeError:
        raise UnknownOriginError(name=origin, store=store.title) from None
    if not found.read_only:
        raise NotAnOriginError(name=origin)
    kept = store.read_info(origin)
    if not kept.shared:
        raise WithdrawnError(name=origin)
    return _large_enough(found, origin, size), kept


def _large_enough(head: VolumeMap, origin: str, size: int) -> VolumeMap:
    if size < head.size:
        mebibytes = -(-head.size // MEBIBYTE)
        raise SmallerThanOriginError(size=size, origin=origin, minimum=head.size, mebibytes=mebibytes)
    return head


def of_disk_name(store: Store, cname: str) -> list[str]:
    """The volumes that were made for Ganeti disks of that name."""
    names = store.possible_names()
    found = zip(names, store.each(lambda name: _has_cname(store, name, cname), names), strict=True)
    return [name for name, is_wanted in found if is_wanted]


def check_size_of(store: Store, name: str, size: int) -> None:
    """Raise AlreadyThereError when that is not a volume of this size."""
    head = store.read_heads(name)
    if head.read_only or head.size != size:
        what = f"{kind_of(head, store.read_info(name))} of {head.size} bytes, not {size}"
        raise AlreadyThereError(name=name, store=store.title, what=what)


def adopt(store: Store, old: str, name: str, size: int) -> None:
    """For `reuse_data`: give an existing, unused volume the name by which Ganeti now calls it."""
    check_name(name, "the volume name")
    check_size_of(store, old, size)
    with held(store, old), store.locked():
        store.rename(old, name)
    info("%s: adopted, was %s", name, old)


def _has_cname(store: Store, name: str, cname: str) -> bool:
    try:
        return store.read_info(name).cname == cname and not store.read_heads(name).read_only
    except (BrokenError, NoSuchVolumeError):
        return False


@contextlib.contextmanager
def held(store: Store, name: str) -> Iterator[VolumeLock]:
    """The volume's lock. Before the store's, if that is needed too: waiting for a holder keeps nobody else waiting."""
    lock = store.lock_volume(name, patience=store.patience)
    try:
        yield lock
    finally:
        lock.release()


def holder(store: Store, name: str) -> tuple[bool, Holder | None]:
    """Whether somebody has the volume, and who has or last had it. To find out, the lock is ours for a moment."""
    try:
        lock = store.lock_volume(name)
    except HeldError as error:
        return True, error.holder if isinstance(error.holder, Holder) else None
    try:
        return False, lock.holder()
    finally:
        lock.release()


def remove(store: Store, name: str) -> int:
    """Remove a volume, snapshot or image; answers with the bytes freed, which are those that only a volume had.

    What other maps may share is left to the collection. Removing what is not there is success. Raises HeldError when
    a server uses it.
    """
    check_name(name)
    try:
        with held(store, name), store.locked():
            own = _own_layer(store, name)
            store.remove(name)
    except NoSuchVolumeError:
        return 0
    # Not under the lock: a large layer takes time. No map can name it again.
    freed = store.remove_layer(own, patience=_REMOVAL) if own else 0
    info("%s: removed, %d MiB freed", name, freed // MEBIBYTE)
    return freed


def _own_layer(store: Store, name: str) -> Source | None:
    """The layer that nobody but this volume has: what it wrote since its last snapshot."""
    try:
        head = store.read_heads(name)
    except BrokenError as error:
        warning("%s; removing it all the same", error)
        return None
    return None if head.read_only else head.current


def items(store: Store, *kinds: str, names: Sequence[str] | None = None) -> list[Item]:
    """What there is, or what these names mean, of the given kinds; what is broken is listed with its fault."""
    found = store.each(lambda name: _item(store, name), store.possible_names() if names is None else names)
    return [item for item in found if item is not None and (not kinds or item.kind in (*kinds, "broken"))]


def names_of(store: Store, kind: str, beginning: str) -> list[str]:
    """For completion: of the given kind, or any if it is empty. Of very many, nobody looks what they are."""
    names = [name for name in store.possible_names() if name.startswith(beginning)]
    if len(names) > _MOST_COMPLETIONS:
        return names
    return [item.name for item in items(store, *([kind] if kind else ()), names=names)]


def _item(store: Store, name: str) -> Item | None:
    try:
        head, facts = store.read_heads(name), store.read_info(name)
    except NoSuchVolumeError:
        return None
    except BrokenError as error:
        return Item(name, "broken", 0, Info(created=0.0), str(error))
    return Item(name, kind_of(head, facts), head.size, facts)


def item(store: Store, name: str, what: str, *kinds: str) -> Item:
    """One of them; raises NoSuchVolumeError when there is none of these kinds."""
    found = _item(store, check_name(name))
    if found is None:
        raise NoSuchVolumeError(what=what, name=name, store=store.title)
    if found.kind not in (*kinds, "broken"):
        raise OtherKindError(what=what, name=name, store=store.title, kind=found.kind)
    return found


def used(store: Store, name: str) -> int:
    """The bytes in the layer that a volume writes now, since its last snapshot; of a snapshot, in all that it names."""
    head = store.read_heads(name)
    if not head.read_only:
        return store.used(head.current)
    return sum(store.used(source) for source in head.sources) + _contents_used(store, store.read_map(name).digests)


def _contents_used(store: Store, digests: bytes) -> int:
    """Of many, some are asked for, and the rest is taken to be alike."""
    count = len(digests) // DIGEST
    asked = [digests[at * DIGEST : at * DIGEST + DIGEST] for at in range(0, count, max(1, count // _SAMPLE))]
    return sum(store.each(store.content_used, asked)) * count // max(1, len(asked))

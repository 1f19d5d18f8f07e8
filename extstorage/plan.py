# SPDX-License-Identifier: BSD-2-Clause
"""From Ganeti's call to what shall be done: everything that can be judged without looking at the store. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from extstorage.errors import BadParameterError
from extstorage.names import MEBIBYTE, check_name, check_size, is_store_name
from extstorage.references import Reference, reference
from ganeti_plugin.contract.extstorage import Access, ExtStorageCall

#: The disk parameters, as in parameters.list. A misspelt one is refused when the disk is created.
PARAMETERS: Mapping[str, str] = {
    "origin": "Image or snapshot, or pithosmap://MAP/SIZE, that the disk is to be a clone of; without it it is empty",
    "origin_size": "Size of the origin in bytes, which Cyclades sends; it may not be larger than the disk",
    "store": "Name of the store that the disk is in; without it a clone is where its origin is, else the default store",
    "reuse_data": "True to adopt an existing volume with its data, found by the disk's name; False (default) not to",
    "keep": "True to keep the volume when its disk is removed, to be reused later; False (default) to remove it",
    "device": "Block device of the node: auto (default: nbd or else loop, but none for userspace), nbd, loop, none",
}


#: How Ganeti calls the snapshot that an export makes and removes: the volume's name and this. No volume is called so.
_EXPORT = ".snap"


class Device(StrEnum):
    """What the node shows of the volume besides the NBD socket."""

    #: The kernel's NBD client where it has one, else loop.
    AUTO = "auto"
    NBD = "nbd"
    LOOP = "loop"
    NONE = "none"


class CreatePlan(NamedTuple):
    """A volume to make, or to give to a new disk."""

    volume: str
    #: Bytes.
    size: int
    #: A snapshot or image, or empty.
    origin: str
    #: What Ganeti's user calls the disk, or empty.
    cname: str
    #: Whether a volume that is there is to be taken, with its data.
    adopt: bool
    #: The name of a store, or empty.
    store: str = ""
    device: Device = Device.NONE
    #: The origin as a file of Pithos, if it is one; it may also be the name of an image.
    pithos: Reference | None = None


class AttachPlan(NamedTuple):
    """A volume to serve on this node."""

    volume: str
    device: Device
    #: Whether QEMU is to connect to the server itself.
    uri: bool
    store: str = ""


class GrowPlan(NamedTuple):
    """A volume to make larger."""

    volume: str
    #: Bytes, all in all.
    size: int
    store: str = ""


class SnapshotPlan(NamedTuple):
    """A snapshot to take of a volume."""

    volume: str
    name: str
    #: An interrupted export leaves a snapshot of the name that the next export will want.
    replace: bool
    store: str = ""


def plan_create(call: ExtStorageCall) -> CreatePlan:
    """Raises an InputError for an unknown or malformed parameter, name or size."""
    for name in call.parameters:
        if name not in PARAMETERS:
            raise BadParameterError(name=name, reason=f"is unknown; there are {', '.join(PARAMETERS)}")
    assert call.size is not None
    size = check_size(call.size * MEBIBYTE)
    device = _device(call)
    origin_size = _number(call, "origin_size")
    if origin_size is not None and origin_size > size:
        raise BadParameterError(name="origin_size", reason=f"says {origin_size}, but the disk has only {size} bytes")
    origin = call.parameters.get("origin", "")
    pithos = reference(origin, origin_size)
    if origin and pithos is None:
        check_name(origin, "the origin")
    adopt = _boolean(call, "reuse_data")
    _boolean(call, "keep")
    store = store_of(call)
    if "store" in call.parameters and not is_store_name(store):
        raise BadParameterError(name="store", reason=f"has the value {store[:80]!r}, which is not the name of a store")
    return CreatePlan(
        check_name(call.volume, "the volume name"), size, origin, call.cname or "", adopt, store, device, pithos
    )


def plan_attach(call: ExtStorageCall) -> AttachPlan:
    """Parameters may have been changed since creation; a bad `device` means auto, a wrong `store` is only a hint.

    For a failing attach makes Ganeti believe that there is no volume, and leak it.
    """
    check_name(call.volume, "the volume name")
    try:
        device = _device(call)
    except BadParameterError:
        device = _automatic(call)
    return AttachPlan(call.volume, device, call.access is Access.USERSPACE, store_of(call))


def store_of(call: ExtStorageCall) -> str:
    """The store that the disk's parameter names, or "". It may have been changed since the disk was created."""
    return call.parameters.get("store", "")


def is_kept(call: ExtStorageCall) -> bool:
    """Whether the volume shall outlive its disk. When in doubt it does: data are not to be had back.

    An export removes its snapshot with the parameters of the disk that it is of.
    """
    return not call.volume.endswith(_EXPORT) and call.parameters.get("keep", "False").lower() != "false"


def plan_grow(call: ExtStorageCall) -> GrowPlan:
    assert call.new_size is not None
    return GrowPlan(check_name(call.volume, "the volume name"), check_size(call.new_size * MEBIBYTE), store_of(call))


def plan_snapshot(call: ExtStorageCall) -> SnapshotPlan:
    volume = check_name(call.volume, "the volume name")
    name = check_name(call.snapshot or "", "the snapshot name")
    return SnapshotPlan(volume, name, replace=name == f"{volume}{_EXPORT}", store=store_of(call))


def _automatic(call: ExtStorageCall) -> Device:
    return Device.NONE if call.access is Access.USERSPACE else Device.AUTO


def _device(call: ExtStorageCall) -> Device:
    wanted = call.parameters.get("device", "auto")
    if wanted == Device.AUTO:
        return _automatic(call)
    if wanted not in set(Device):
        raise BadParameterError(name="device", reason=f"has the value {wanted[:80]!r}; there are {', '.join(Device)}")
    device = Device(wanted)
    if device is Device.NONE and call.access is Access.KERNELSPACE:
        raise BadParameterError(name="device", reason="can be none only with access=userspace")
    return device


def _boolean(call: ExtStorageCall, name: str) -> bool:
    value = call.parameters.get(name, "False")
    if value.lower() not in ("true", "false"):
        raise BadParameterError(name=name, reason=f"has the value {value[:80]!r}, which is neither True nor False")
    return value.lower() == "true"


def _number(call: ExtStorageCall, name: str) -> int | None:
    value = call.parameters.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise BadParameterError(name=name, reason=f"has the value {value[:80]!r}, which is not a number of bytes")
    return int(value)

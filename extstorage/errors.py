# SPDX-License-Identifier: BSD-2-Clause
"""What can go wrong with volumes, one class for each thing that a caller may handle differently."""

from __future__ import annotations

from ganeti_plugin.errors import InputError, IntegrityError, StateError


class BadNameError(InputError):
    template = "{what} {name!r} is not acceptable: {reason}"


class BadSizeError(InputError):
    template = "the size {size} is not acceptable: {reason}"


class TooLargeForStoreError(InputError):
    template = "a volume of {size} bytes is too large for the store {store}: its file system keeps no file of that size"
    hint = "make it smaller, or use a store on a file system with larger files, such as XFS, or in RADOS"


class BadParameterError(InputError):
    template = "the disk parameter {name} {reason}"


class NoSuchVolumeError(StateError):
    template = "there is no {what} {name!r} in the store {store}"


class OtherKindError(NoSuchVolumeError):
    """It is there, and not what was asked for."""

    template = "{name!r} in the store {store} is of another kind: {kind}, not {what}"


class UnknownOriginError(InputError):
    template = "the origin {name!r} is neither an image nor a snapshot of the store {store}"
    hint = "'archipelago image list' and 'archipelago snapshot list' show what there is"


class NotAnOriginError(InputError):
    template = "{name!r} is a volume, and only an image or a snapshot can be cloned"
    hint = "take a snapshot first: archipelago snapshot create {name} NAME"


class WithdrawnError(InputError):
    template = "the image {name!r} is not shared: no new disk can be made of it"
    hint = "archipelago image share {name}"


class SmallerThanOriginError(InputError):
    template = "a disk of {size} bytes is smaller than its origin {origin!r}, which has {minimum}"
    hint = "ask for at least {mebibytes} MiB"


class AlreadyThereError(InputError):
    template = "{name!r} is already in the store {store} ({what})"


class ReadOnlyError(StateError):
    template = "{name!r} is a snapshot or an image, which can't be changed"


class HeldError(StateError):
    """Somebody else has the volume. `holder` names them."""

    template = "the volume {name!r} is in use by {holder}"
    hint = "it must be closed or detached there first"


class BusyError(StateError):
    """Work of which there is one at a time is being done by somebody else."""

    template = "another {work} is running in the store {store}"


class NotOpenError(StateError):
    template = "the volume {name!r} was closed here; open it before writing"


class FencedError(StateError):
    template = "the volume {name!r} was taken over by another server; this one has stopped writing"


class BrokenError(IntegrityError):
    template = "{path}: {reason}"
    hint = "the volume can still be attached and removed, but not read"


class DoubtfulError(IntegrityError):
    template = "what was written to the volume {name!r} may be lost: {reason}"
    hint = "look whether its content is sound, or go back to a snapshot; 'archipelago fsck --repair {name}' accepts it"


class BadStoreError(StateError):
    template = "{path} is not a store of this version: {reason}"


class CantMakeStoreError(BadStoreError):
    template = "no store can be made in {path}: {reason}"
    hint = "the directory must belong to the user that the setting archipelago.user names"


class UnreadableStoreError(BadStoreError):
    template = "the store in {path} can't be read: {reason}"
    hint = "what is in it must belong to the user that the setting archipelago.user names"


class ForeignPlaceError(CantMakeStoreError):
    template = "no store can be made in {path}: it holds something else, such as {example}"
    hint = "choose a place that holds nothing"


class NoStoreError(BadStoreError):
    template = "there is no store in {path}: {reason}"
    hint = "mount what belongs there, or make the store, once for all nodes: archipelago store create NAME"


class BadStoreSpecError(InputError):
    template = "{spec!r} is not the place of a store: {reason}"
    hint = "write files:/DIRECTORY or rados:POOL[/NAMESPACE][?conf=FILE&user=NAME&keyring=FILE]"


class NoSuchStoreError(InputError):
    template = "there is no store {name!r}; the configuration has {known}"
    hint = "the setting archipelago.stores is the table of stores"


class UnreachableStoreError(StateError):
    """A store can't be asked, so that nobody knows whether it has something."""

    template = "the store {name!r} can't be used: {reason}"


def why_unusable(error: Exception) -> str:
    """What an error with a store adds to the sentence that the store can't be used."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error.reason) if isinstance(error, UnreachableStoreError) else str(error)


class FullStoreError(StateError):
    template = "the store {store} is full"
    hint = "remove volumes and snapshots that nobody needs and run 'archipelago gc', or give it more space"


class ReadOnlyStoreError(StateError):
    template = "the store {store} can't be written: Read-only file system ({path})"
    hint = "a kernel that sees errors mounts it so by itself: see 'dmesg' first, then mount it for writing"


class StoreError(StateError):
    """A store has an error for one thing that is in it, which says nothing of the others."""

    template = "{store}: {key}: {reason}"


class FencedClientError(StateError):
    """The store refuses this process for good: somebody took it for dead."""

    template = "the store {store} has shut this process out: it was silent for so long that others took over"


class ServerError(StateError):
    """The server of an attached volume refused or does not answer."""

    template = "the server of the volume {name!r} says: {message}"


class UnreadableError(StateError):
    template = "the disk can't be read: {reason}"


class NoDeviceError(StateError):
    template = "no block device could be made for the volume {name!r}: {reason}"

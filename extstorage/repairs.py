# SPDX-License-Identifier: BSD-2-Clause
"""What a check may do about what it found (fsck.py): only what is certain to be right, with the lock that it takes.

Each repair answers with a sentence that says what was done and what is lost, or with "" if nothing could be done. If it
raises (HeldError, when somebody uses the volume), nothing was repaired.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from extstorage import maps
from extstorage.bitmaps import bits_of, indexes_of
from extstorage.catalog import held
from extstorage.errors import BrokenError, NoSuchVolumeError
from extstorage.maps import Source, VolumeMap
from extstorage.names import BLOCK, PAGE
from extstorage.pages import mask_of
from extstorage.store import Info, Layer, Store


class Repairs:
    """The repairs of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def forget_facts(self, name: str) -> str:
        """Facts that can't be read, replaced by none."""
        with held(self._store, name):
            self._store.write_info(name, Info(created=0.0))
        return "origin, disk name and properties are lost"

    def make_layer(self, name: str) -> str:
        """The layer that a first write, which was killed, has entered and not made."""
        with held(self._store, name):
            self._store.layer(self._store.read_heads(name).current, writable=True)
        return "made"

    def rebuild(self, name: str, source: Source, bad: int, *, current: bool) -> str:
        """Bitmaps that are lost, from the data: what is there was written. What was discarded is no longer known.

        `bad` is a bitmap of the layer's blocks; `current`: the volume `name` writes the layer now.
        """
        with held(self._store, name) if current else contextlib.nullcontext():
            # Who had it meanwhile may have written some anew, with discards of which the data tell nothing.
            return self._rebuild(source, unreadable(self._store, source, bad))

    def _rebuild(self, source: Source, bad: int) -> str:
        if self._store.atomic_pages:
            return ""
        try:
            layer = self._store.layer(source)
        except BrokenError:
            return ""
        bits = {index: _pages_with_data(layer, index) for index in indexes_of(bad)}
        self._store.layer(source, writable=True).save_pages(bits)
        return "the bitmaps were made anew from the data; pages that were discarded there may show older data"

    def accept_loss(self, name: str) -> str:
        """What a flush could not write may be lost: somebody has looked, and takes the content as it is."""
        with held(self._store, name) as lock:
            last = lock.holder()
            if last is None:
                return ""
            lock.record(last._replace(loss=""))
        return "the volume can be opened again, with the data as they are"

    def restore_map(self, name: str) -> str:
        """The generation before, brought to where the volume is: nothing was lost if that was a snapshot."""
        with held(self._store, name), self._store.locked():
            old = self._store.previous_map(name)
            if old is None:
                return ""
            if not old.read_only and self._newest(old) > old.epoch:
                old = self._next_generation(old)
            self._store.write_map(name, old)
        return f"the map before the last change is back, with {old.size} bytes"

    def _newest(self, found: VolumeMap) -> int:
        """The epoch in which the volume is, by what is there: one above the newest frozen layer, or that of data."""
        named = (source for _, head in heads_of(self._store) for source in head.sources)
        frozen = [source.epoch + 1 for source in named if source.owner == found.owner]
        return max([*frozen, *epochs_of(self._store).get(found.owner, ())], default=0)

    def _next_generation(self, old: VolumeMap) -> VolumeMap:
        """What the snapshot wrote that `old` knows nothing of. Raises ValueError if more than that happened."""
        if self._newest(old) != old.epoch + 1:
            raise ValueError("the map is older than the last snapshot")
        layer = self._store.layer(old.current)
        pages = {index: layer.load_pages(index) for index, _ in layer.blocks()}
        # None: a death in the middle of a copy. Such a block is no layer.
        return maps.freeze(old, {index: bits for index, bits in pages.items() if bits})

    def advance(self, name: str) -> str:
        """A map that is older than the last snapshot, brought to it. Raises ValueError if more than that is missing."""
        with held(self._store, name), self._store.locked():
            old = self._store.read_map(name)
            self._store.write_map(name, self._next_generation(old))
        return "the map was brought to the last snapshot"


def epochs_of(store: Store) -> dict[bytes, list[int]]:
    """For each owner, the epochs of its layers."""
    epochs: dict[bytes, list[int]] = {}
    for source in store.layers():
        epochs.setdefault(source.owner, []).append(source.epoch)
    return epochs


def heads_of(store: Store) -> Iterator[tuple[str, VolumeMap]]:
    """The maps that can be read, without their entries."""

    def head(name: str) -> VolumeMap | None:
        with contextlib.suppress(BrokenError, NoSuchVolumeError):
            return store.read_heads(name)
        return None

    names = store.possible_names()
    for name, found in zip(names, store.each(head, names), strict=True):
        if found is not None:
            yield name, found


def unreadable(store: Store, source: Source, bits: int) -> int:
    """Those of a layer's blocks of which nobody can tell what the layer has; bitmaps of blocks."""
    try:
        layer = store.layer(source)
    except BrokenError:
        return bits
    bad = bytearray(bits.bit_length())
    for index in indexes_of(bits):
        try:
            layer.load_pages(index)
        except BrokenError:
            bad[index] = 1
    return bits_of(bad, 1)


def _pages_with_data(layer: Layer, index: int) -> int:
    bits = position = 0
    for length, hole in layer.holes(index, 0, BLOCK):
        if not hole:
            bits |= mask_of(position // PAGE, -(-(position + length) // PAGE))
        position += length
    return bits

# SPDX-License-Identifier: BSD-2-Clause
"""The map of the next epoch, made while requests still run, and brought up to date while they are held.

What takes long for a large volume is done before: copying the entries, entering what is owned, dropping what no entry
names any more, and packing. What was written since is entered in the end; what only that has hidden stays listed until
the next snapshot. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from extstorage import maps
from extstorage.maps import VolumeMap
from extstorage.packing import Packing


class Freezing:
    """`owned` is what the current epoch owns, as far as that is known."""

    def __init__(self, old: VolumeMap, owned: Mapping[int, int]) -> None:
        #: Whether the epoch has a layer; if it has none, the old map is as good.
        self.is_needed = bool(owned)
        self._frozen = maps.freeze(old, owned)
        if old.current not in self._frozen.sources:
            self._frozen = self._frozen._replace(sources=(*self._frozen.sources, old.current))
        self._packing = Packing(self._frozen.entries)
        self._packing.packed()

    def update(self, owned: Mapping[int, int]) -> tuple[VolumeMap, bytes]:
        """What `maps.freeze` would answer, with these blocks owning that now, and the packed entries."""
        self.is_needed = self.is_needed or any(owned.values())
        self._packing.reach(max(owned, default=-1) + 1)
        number = len(self._frozen.sources)
        for index, bits in owned.items():
            start = index * maps.DEPTH
            below = [n for n in self._packing.entries[start : start + maps.DEPTH] if n and n != number]
            row = maps.frozen(self._frozen.size, index, number, below, bits) if bits else maps.entry(below)
            self._packing.replace(index, row)
        return self._frozen._replace(entries=self._packing.entries), self._packing.packed()

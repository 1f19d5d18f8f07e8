# SPDX-License-Identifier: BSD-2-Clause
"""Giving a snapshot's blocks the names of their content, so that it shares them with whatever has the same.

The snapshot is taken into its own store like any other disk (`intake.py`), then its map is replaced in one step. Clones
that were made before keep the layers that they name; what nobody names any more is the next collection's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from extstorage import catalog, intake, maps
from extstorage.content import Block, Take, root_of, root_of_map
from extstorage.maps import VolumeMap
from extstorage.names import BLOCK, check_name
from extstorage.progress import Progress
from extstorage.store import Store
from extstorage.volume import Volume
from ganeti_plugin.errors import InputError
from ganeti_plugin.log import info

PREFIX = "hash-"


class NotHashableError(InputError):
    template = "{name!r} is a volume, and only an image or a snapshot can be hashed"
    hint = "take a snapshot first: archipelago snapshot create {name} NAME"


class Unhashed:
    """As a source: the blocks of a snapshot that have no name of their content yet."""

    def __init__(self, store: Store, volume_map: VolumeMap) -> None:
        self._map = volume_map
        self._volume = Volume(store, volume_map, cached=True)
        self.size = volume_map.size
        self.identity = f"map:{hashlib.sha256(maps.encode(volume_map)).hexdigest()}"

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        for number in range(first, self._map.blocks):
            layers = self._map.layers(number)
            if layers and not layers[0].is_content:
                block = Block(number, take(), min(BLOCK, self.size - number * BLOCK))
                self._volume.readinto(block.buffer[: block.length], number * BLOCK)
                yield block

    def check(self) -> None:
        """A snapshot never changes, and its lock is ours."""


def hash_snapshot(store: Store, name: str, progress: Progress) -> bytes:
    """Answers with the name of the whole content, its Merkle root. What is hashed already is not read.

    Raises HeldError when the snapshot is attached: who reads it must not lose its layers.
    """
    check_name(name, room=len(PREFIX))
    with catalog.held(store, name):
        old = store.read_map(name)
        if not old.read_only:
            raise NotHashableError(name=name)
        root = root_of_map(old)
        if root is None:
            root = _hash(store, name, old, progress)
        else:
            intake.clear(store, f"{PREFIX}{name}")
    progress(100)
    return root


def _hash(store: Store, name: str, old: VolumeMap, progress: Progress) -> bytes:
    with intake.taken_in(store, f"{PREFIX}{name}", Unhashed(store, old), progress) as (size, found):
        digests = list(found)
        for number in range(old.blocks):
            layers = old.layers(number)
            if layers and layers[0].is_content:
                digests[number] = layers[0].owner
        new = maps.from_digests(size, old.owner, digests)
        # Under this lock, so that a collection finds each block named by one of the two maps.
        with store.locked():
            store.write_map(name, new)
    root = root_of(digests)
    info("%s: hashed, %s", name, root.hex())
    return root

# SPDX-License-Identifier: BSD-2-Clause
"""Random work of several processes on one store, each beside a model of its own names, while each may fail or die.

A name is its maker's alone, but everybody clones what anybody has a snapshot of. What failed or was killed was done, or
was not; everything else is as it was told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from extstorage import catalog, gc
from extstorage.content import Block, Take
from extstorage.errors import NoSuchVolumeError, UnknownOriginError
from extstorage.hashing import hash_snapshot
from extstorage.images import import_from
from extstorage.names import BLOCK, PAGE
from extstorage.session import Session
from extstorage.store import Info, Store
from ganeti_plugin.errors import Error

BLOCKS = 3
_MOST = 4

#: What the first page of each block reads as.
Blocks = list[bytes]
ZEROS = [bytes(PAGE)] * BLOCKS


class Images:
    """A source with few different blocks, so that many images share them."""

    def __init__(self, chance: Random) -> None:
        self.blocks_of = [bytes([chance.randrange(1, 4)]) * PAGE for _ in range(BLOCKS)]
        self.size: int | None = BLOCKS * BLOCK
        self.identity = hashlib.sha256(b"".join(self.blocks_of)).hexdigest()

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        for number in range(first, BLOCKS):
            buffer = take()
            buffer[:PAGE] = self.blocks_of[number]
            buffer[PAGE:] = bytes(BLOCK - PAGE)
            yield Block(number, buffer, BLOCK)

    def check(self) -> None:
        """It never changes."""


class Tenant:
    """One process. `common` are the snapshots of all."""

    def __init__(self, name: str, store: Store, chance: Random, common: dict[str, Blocks]) -> None:
        self.name = name
        self.store = store
        self.chance = chance
        self.common = common
        self.volumes: dict[str, Blocks] = {}
        self.snapshots: dict[str, Blocks] = {}
        #: Of what runs, the name, and what it may read as instead; None: it may not be there.
        self.doubt: Mapping[str, Sequence[Blocks | None]] = {}
        self.failed: list[str] = []
        self.done: list[str] = []
        #: Many hands on few content blocks.
        self.only_images = False
        self._count = 0

    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        actions: list[Callable[[], None]] = [
            self.create,
            self.clone,
            self.clone,
            self.snapshot,
            self.snapshot,
            self.remove,
        ]
        actions += [self.write, self.write, self.hash, self.take_in, self.rename, self.collect]
        if self.only_images:
            actions = [self.take_in, self.take_in, self.remove, self.remove, self.collect]
        if len(self.volumes) + len(self.snapshots) > _MOST:
            actions = [self.remove]
        action = self.chance.choice(actions)
        before = self.doubt
        self.doubt = {}
        try:
            action()
        except Error as error:
            # Whether it was done is not known any more; such names are left alone.
            self.failed.append(f"{action.__name__}: {error!r}")
            self.done.append(self.failed[-1])
            for name in self.doubt:
                self.volumes.pop(name, None)
                self.snapshots.pop(name, None)
                self.common.pop(name, None)
            self.doubt = {**before, **self.doubt}
            return
        self.doubt = before

    def _new(self) -> str:
        self._count += 1
        return f"{self.name}{self._count}"

    def _note(self, text: str, doubt: Mapping[str, Sequence[Blocks | None]]) -> None:
        self.done.append(text)
        self.doubt = doubt

    def create(self) -> None:
        name = self._new()
        self._note(f"create {name}", {name: [ZEROS, None]})
        catalog.create_volume(self.store, name, BLOCKS * BLOCK)
        self.volumes[name] = list(ZEROS)

    def clone(self) -> None:
        if self.common:
            origin, name = self.chance.choice(sorted(self.common)), self._new()
            blocks = list(self.common[origin])
            self._note(f"clone {origin} {name}", {name: [blocks, None]})
            try:
                catalog.create_volume(self.store, name, (BLOCKS + self.chance.randrange(2)) * BLOCK, origin=origin)
            except UnknownOriginError:
                return
            self.volumes[name] = blocks

    def write(self) -> None:
        if self.volumes:
            name, block = self.chance.choice(sorted(self.volumes)), self.chance.randrange(BLOCKS)
            data = bytes([self.chance.randrange(1, 250)]) * PAGE
            old, new = list(self.volumes[name]), list(self.volumes[name])
            new[block] = data
            self._note(f"write {name} {block}", {name: [old, new, [*old[:block], bytes(PAGE), *old[block + 1 :]]]})
            session = Session(self.store, name)
            if self.chance.random() < 0.5:
                session.zero(block * BLOCK, BLOCK)
            session.write(memoryview(data), block * BLOCK)
            session.shutdown()
            self.volumes[name] = new

    def snapshot(self) -> None:
        if self.volumes:
            volume, name = self.chance.choice(sorted(self.volumes)), self._new()
            blocks = list(self.volumes[volume])
            block = self.chance.randrange(BLOCKS)
            old, blocks[block] = list(blocks), bytes([self.chance.randrange(1, 250)]) * PAGE
            self._note(f"snapshot {volume} {name}", {volume: [old, blocks], name: [blocks, None]})
            session = Session(self.store, volume)
            session.write(memoryview(blocks[block]), block * BLOCK)
            session.snapshot(name, Info(created=1.0, origin=volume))
            session.shutdown()
            self.volumes[volume] = list(blocks)
            self.snapshots[name] = self.common[name] = blocks

    def remove(self) -> None:
        table = self.chance.choice([self.volumes, self.snapshots])
        if table:
            name = self.chance.choice(sorted(table))
            self._note(f"remove {name}", {name: [table[name], None]})
            catalog.remove(self.store, name)
            del table[name]
            self.common.pop(name, None)

    def rename(self) -> None:
        if self.volumes:
            old, name = self.chance.choice(sorted(self.volumes)), self._new()
            blocks = self.volumes[old]
            size = self.store.read_heads(old).size
            self._note(f"rename {old} {name}", {old: [blocks, None], name: [blocks, None]})
            catalog.adopt(self.store, old, name, size)
            del self.volumes[old]
            self.volumes[name] = blocks

    def hash(self) -> None:
        if self.snapshots:
            name = self.chance.choice(sorted(self.snapshots))
            self._note(f"hash {name}", {name: [self.snapshots[name]]})
            hash_snapshot(self.store, name, lambda _percent: None)

    def take_in(self) -> None:
        source, name = Images(self.chance), self._new()
        self._note(f"import {name}", {name: [source.blocks_of, None]})
        import_from(self.store, name, source, {}, lambda _percent: None)
        self.snapshots[name] = self.common[name] = list(source.blocks_of)

    def collect(self) -> None:
        self._note("collect", {})
        report = gc.collect(self.store)
        assert not report.faults, report.faults

    def check(self, store: Store) -> None:
        for name, blocks in {**self.volumes, **self.snapshots}.items():
            if name in self.doubt:
                continue
            found = contents(store, name)
            assert found == blocks, f"{name} reads {_short(found)} instead of {_short(blocks)}"
        for name, allowed in self.doubt.items():
            found = contents(store, name)
            assert found in allowed, f"{name} reads {_short(found)}"


def contents(store: Store, name: str) -> Blocks | None:
    try:
        # One who died elsewhere may seem to have it.
        store.lock_volume(name, patience=store.patience).release()
        session = Session(store, name)
    except NoSuchVolumeError:
        return None
    buffer = bytearray(2 * PAGE)
    found = []
    for block in range(BLOCKS):
        session.readinto(memoryview(buffer), block * BLOCK)
        found.append(bytes(buffer[:PAGE]))
        assert not any(buffer[PAGE:])
    session.shutdown()
    return found


def _short(blocks: Blocks | None) -> str:
    return "nothing" if blocks is None else " ".join(str(block[0]) for block in blocks)

# SPDX-License-Identifier: BSD-2-Clause
"""Random work of several processes on one store, each beside a model of its own names, while each may fail or die.

A name is its maker's alone, but everybody clones what anybody has a snapshot of. What failed or was killed was done, or
was not; everything else is as it was told. After a failure its names are looked at, with their locks: from then on they
stay what they are, whatever arrives late, and work goes on with them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from extstorage import catalog, gc, pithos_export, scrub
from extstorage.content import Block, Take
from extstorage.errors import NoSuchVolumeError, UnknownOriginError
from extstorage.hashing import hash_snapshot
from extstorage.images import import_from
from extstorage.names import BLOCK, PAGE
from extstorage.pithos_export import NotHashedError
from extstorage.progress import untold
from extstorage.session import Session
from extstorage.store import Info, Store
from ganeti_plugin.errors import Error

BLOCKS = 3
_MOST = 4

#: The bytes of which blocks of images are.
KINDS = (1, 2, 3)

#: What the first page of each block reads as.
Blocks = list[bytes]
ZEROS = [bytes(PAGE)] * BLOCKS
_REST = bytes(BLOCK - PAGE)


class Images:
    """A source with few different blocks, so that many images share them."""

    def __init__(self, chance: Random) -> None:
        self.blocks_of = [bytes([chance.choice(KINDS)]) * PAGE for _ in range(BLOCKS)]
        self.size: int | None = BLOCKS * BLOCK
        self.identity = hashlib.sha256(b"".join(self.blocks_of)).hexdigest()

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        for number in range(first, BLOCKS):
            buffer = take()
            buffer[:PAGE] = self.blocks_of[number]
            buffer[PAGE:] = _REST
            yield Block(number, buffer, BLOCK)

    def check(self) -> None:
        """It never changes."""


class Tenant:
    """One process. `common` are the snapshots of all; `server`, which never gives up, is for what writes pages."""

    def __init__(self, name: str, store: Store, server: Store, chance: Random, common: dict[str, Blocks]) -> None:
        self.name = name
        self.store = store
        self.server = server
        self.chance = chance
        self.common = common
        self.volumes: dict[str, Blocks] = {}
        self.snapshots: dict[str, Blocks] = {}
        #: Of what runs, the name, and what it may read as instead; None: it may not be there.
        self.doubt: Mapping[str, Sequence[Blocks | None]] = {}
        self.failed: list[str] = []
        self.done: list[str] = []
        #: Of each two, one has the data.
        self.renamed: set[tuple[str, str]] = set()
        self.settled = 0
        #: Many hands on few content blocks.
        self.only_images = False
        #: Where exports go.
        self.directory: Path | None = None
        #: Makes some content block wrong. What reads one may be wrong from then on, until it is repaired.
        self.spoil: Callable[[], None] | None = None
        self._unfinished: list[tuple[str, Images]] = []
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
        actions += [self.write, self.write, self.hash, self.take_in, self.rename, self.collect, self.grow]
        if self.only_images:
            actions = [self.take_in, self.take_in, self.take_in, self.remove, self.remove, self.collect, self.collect]
            actions += [self.scrub, self.export, self.spoil or self.snapshot_and_hash]
        if len(self.volumes) + len(self.snapshots) > _MOST:
            actions = [self.remove]
        action = self.chance.choice(actions)
        before = self.doubt
        self.doubt = {}
        try:
            action()
        except (Error, OSError) as error:
            self.failed.append(f"{getattr(action, '__name__', 'spoil')}: {error!r}")
            self.done.append(self.failed[-1])
            for name in self.doubt:
                self.volumes.pop(name, None)
                self.snapshots.pop(name, None)
                self.common.pop(name, None)
            self.suspect(self.doubt)
            self.doubt = {**before, **self.doubt}
            if self.spoil is None:
                self._look()
            return
        self.assure(self.doubt, durable=action in (self.write, self.rename, self.remove))
        self.doubt = before

    def suspect(self, doubt: Mapping[str, Sequence[Blocks | None]]) -> None:
        """Something failed that may have changed these."""

    def assure(self, doubt: Mapping[str, Sequence[Blocks | None]], *, durable: bool) -> None:
        """Something was done to these: `durable` means that all of them now survive whatever comes."""

    def _look(self) -> None:
        """What is there after a failure. What can't be told now is left alone."""
        told: dict[str, Blocks | None] = {}
        for name, allowed in list(self.doubt.items()):
            with contextlib.suppress(Error, OSError):
                with self.server.locked():
                    """Whoever might still make or remove it is shut out."""
                found = contents(self.server, name)
                assert found in allowed, f"after a failure {name} reads {_short(found)}"
                told[name] = found
                self.doubt = {one: blocks for one, blocks in self.doubt.items() if one != name}
                self.settled += 1
                self.done.append(f"found {name}: {_short(found)}")
                if found is None:
                    continue
                if self.server.read_heads(name).read_only:
                    self.snapshots[name] = self.common[name] = found
                    self._unfinished = [one for one in self._unfinished if one[0] != name]
                else:
                    self.volumes[name] = found
        self._check_renamed(told)

    def _check_renamed(self, told: Mapping[str, Blocks | None]) -> None:
        for old, name in list(self.renamed):
            if old in told and name in told:
                assert (told[old] is None) != (told[name] is None), f"{old} and {name}: one of them must be there"
                self.renamed.discard((old, name))

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
            with serving(self.server, name) as session:
                if self.chance.random() < 0.5:
                    session.zero(block * BLOCK, BLOCK)
                self._persist(lambda: session.write(memoryview(data), block * BLOCK))
                session.flush()
            self.volumes[name] = new

    def _persist(self, work: Callable[[], None]) -> None:
        """As QEMU does with a guest's request: now and then, try again after a failure."""
        try:
            work()
        except (Error, OSError):
            if self.chance.random() < 0.5:
                raise
            work()

    def snapshot(self) -> None:
        if self.volumes:
            volume, name = self.chance.choice(sorted(self.volumes)), self._new()
            blocks = list(self.volumes[volume])
            block = self.chance.randrange(BLOCKS)
            old, blocks[block] = list(blocks), bytes([self.chance.randrange(1, 250)]) * PAGE
            self._note(f"snapshot {volume} {name}", {volume: [old, blocks], name: [blocks, None]})
            with serving(self.server, volume) as session:
                session.write(memoryview(blocks[block]), block * BLOCK)
                if self.chance.random() < 0.5:
                    session.snapshot(name, Info(created=1.0, origin=volume))
                    session.write(memoryview(blocks[block]), block * BLOCK)
            if not self.store.exists(name):
                with serving(self.store, volume) as session:
                    session.snapshot(name, Info(created=1.0, origin=volume))
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
            self.renamed.add((old, name))
            catalog.adopt(self.store, old, name, size)
            self.renamed.discard((old, name))
            del self.volumes[old]
            self.volumes[name] = blocks

    def grow(self) -> None:
        if self.volumes:
            name = self.chance.choice(sorted(self.volumes))
            self._note(f"grow {name}", {name: [self.volumes[name]]})
            with serving(self.store, name) as session:
                session.grow(session.size + BLOCK)

    def hash(self) -> None:
        """Its own, or anybody's."""
        table = self.chance.choice([self.snapshots, self.common])
        if table:
            name = self.chance.choice(sorted(table))
            self._note(f"hash {name}", {name: [table[name]]} if name in self.snapshots else {})
            with contextlib.suppress(NoSuchVolumeError):
                hash_snapshot(self.store, name, untold)

    def snapshot_and_hash(self) -> None:
        if not self.volumes:
            self.clone()
        self.snapshot()
        self.hash()

    def take_in(self) -> None:
        """A new image, or once more the one that could not be completed."""
        if self._unfinished and self.chance.random() < 0.7:
            name, source = self._unfinished.pop()
        else:
            source, name = Images(self.chance), self._new()
        self._note(f"import {name}", {name: [source.blocks_of, None]})
        self._unfinished.append((name, source))
        import_from(self.store, name, source, {}, untold)
        self._unfinished.remove((name, source))
        self.snapshots[name] = self.common[name] = list(source.blocks_of)

    def export(self) -> None:
        """Anybody's; a file has the blocks that its name says, or it is not there."""
        if self.common and self.directory is not None:
            name = self.chance.choice(sorted(self.common))
            self._note(f"export {name}", {})
            with contextlib.suppress(NotHashedError, NoSuchVolumeError):
                pithos_export.export(self.store, name, self.directory / self._new(), untold)

    def scrub(self) -> None:
        self._note("scrub", {})
        report = scrub.scrub(self.store, lambda _done, _all: None, repair=True)
        assert not report.damage or self.spoil, report.damage

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
        told: dict[str, Blocks | None] = {}
        for name, allowed in self.doubt.items():
            told[name] = found = contents(store, name)
            assert found in allowed, f"{name} reads {_short(found)}"
        self._check_renamed(told)


@contextlib.contextmanager
def serving(store: Store, name: str) -> Iterator[Session]:
    """A process that lives releases its lock, whatever fails: in the end, by ending."""
    session = Session(store, name)
    try:
        yield session
    except (Error, OSError):
        with contextlib.suppress(Error, OSError):
            session.shutdown()
        _end(session)
        raise
    try:
        session.shutdown()
    except (Error, OSError):
        _end(session)
        raise


def _end(session: Session) -> None:
    if session._lock is not None:
        session._lock.release()


def contents(store: Store, name: str) -> Blocks | None:
    try:
        # One who died elsewhere may seem to have it.
        store.lock_volume(name, patience=store.patience).release()
        with serving(store, name) as session:
            return [_block(session, block) for block in range(BLOCKS)]
    except NoSuchVolumeError:
        return None


def _block(session: Session, block: int) -> bytes:
    buffer = bytearray(2 * PAGE)
    session.readinto(memoryview(buffer), block * BLOCK)
    assert not any(buffer[PAGE:])
    return bytes(buffer[:PAGE])


def _short(blocks: Blocks | None) -> str:
    return "nothing" if blocks is None else " ".join(str(block[0]) for block in blocks)

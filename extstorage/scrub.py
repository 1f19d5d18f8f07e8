# SPDX-License-Identifier: BSD-2-Clause
"""Reading everything that can be proved: each content block against its name, each map and bitmap against its checksum.

It takes no lock. What comes and goes meanwhile is no damage: a block that was removed is asked for only if a map that
is still there names it. Damage is named with everything that it hits.

A repair removes the blocks that are not what their names say. What they hit then gives errors where it gave wrong data,
and is whole again as soon as somebody imports or hashes anything that has the same blocks.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from extstorage import intake
from extstorage.content import Pipeline, digest_of
from extstorage.digests import Digests, digests_in
from extstorage.errors import BrokenError, NoSuchVolumeError, StoreError
from extstorage.maps import Source
from extstorage.names import BLOCK
from extstorage.scans import Scan
from extstorage.store import R, Store
from ganeti_plugin.log import note

_AHEAD = 8

#: Blocks and layers that are named with what they hit: each takes two kilobytes of memory.
_MOST_FAULTS = 100_000

#: Called with what is done: (blocks that were read, all blocks).
Progress = Callable[[int, int], None]


class Damage(NamedTuple):
    """Something that is not what it was when it was written."""

    what: str
    reason: str
    #: The images, snapshots and volumes that can't be read because of it.
    hits: tuple[str, ...]
    removed: bool = False


class Report(NamedTuple):
    """How much was read, and what was found."""

    maps: int
    layers: int
    #: Content blocks.
    blocks: int
    #: Bytes that were read and compared.
    bytes: int
    seconds: float
    damage: tuple[Damage, ...]


def scrub(store: Store, progress: Progress, *, repair: bool = False) -> Report:
    """Verify a store. `progress` is called after each block."""
    began = time.monotonic()
    # Listed twice, to know how many there are: that is little beside reading them.
    work = _Scrub(store, sum(1 for _ in store.walk_contents()), progress)
    work.verify(digest for digest, _ in store.walk_contents())
    names = list(work.readable_maps())
    damage = tuple(work.damage(names))
    if repair:
        damage = tuple(work.without_spoilt(damage))
    for one in damage:
        note("%s: %s: %s; it hits %s", store.title, one.what, one.reason, ", ".join(one.hits) or "nothing")
    return Report(
        maps=len(names),
        layers=work.layers,
        blocks=work.blocks,
        bytes=work.bytes,
        seconds=time.monotonic() - began,
        damage=damage,
    )


class _Each:
    """Tells of each layer and of the content blocks that a map names."""

    def __init__(self, layer: Callable[[Source], None], contents: Callable[[Iterable[bytes]], None]) -> None:
        self._layer = layer
        self._contents = contents

    def sources(self, sources: tuple[Source, ...]) -> None:
        for source in sources:
            self._layer(source)

    def numbers(self, first: int, numbers: array[int]) -> None:
        """Which blocks they are is not asked."""

    def digests(self, digests: bytes) -> None:
        self._contents(digests_in(digests))


class _Scrub:
    def __init__(self, store: Store, expected: int, progress: Progress) -> None:
        self._store = store
        self._expected = expected
        self._progress = progress
        self._own = threading.local()
        self._faults: dict[Source, str] = {}
        self._further = 0
        self._broken_maps: dict[str, str] = {}
        self._checked: set[Source] = set()
        self._bodies: set[object] = set()
        self._faulty_bodies: dict[object, set[Source]] = {}
        self._verified = Digests()
        self.blocks = 0
        self.bytes = 0

    @property
    def layers(self) -> int:
        return len(self._checked)

    def verify(self, digests: Iterable[bytes]) -> None:
        """Each of them that was not verified before."""
        with Pipeline(0, _AHEAD) as pipeline:
            for digest, fault in pipeline.ordered(self._fault_of, filter(self._verified.add, digests)):
                self._keep(Source(digest, 0), fault)
                self.bytes += BLOCK
                self.blocks += 1
                self._progress(self.blocks, max(self.blocks, self._expected))

    def _keep(self, source: Source, fault: str) -> None:
        if fault and len(self._faults) < _MOST_FAULTS:
            self._faults[source] = fault
        elif fault:
            self._further += 1

    def _fault_of(self, digest: bytes) -> tuple[bytes, str]:
        try:
            found = self._name_of(digest)
        except (BrokenError, StoreError) as error:
            return digest, str(error)
        except OSError as error:
            return digest, f"it can't be read ({error.strerror})"
        return digest, "" if found == digest else f"its bytes have the name {found.hex()}"

    def _name_of(self, digest: bytes) -> bytes:
        """What the bytes of a block say that its name is."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = memoryview(bytearray(BLOCK))
        self._store.layer(Source(digest, 0)).readinto(0, 0, self._own.buffer)
        return digest_of(self._own.buffer)

    def readable_maps(self) -> Iterator[str]:
        for name in self._store.names():
            if self._scan(name, partial(self._check, name)):
                yield name

    def _scan(self, name: str, look: Callable[[Scan], R]) -> R | None:
        """None of a map that is gone, or can't be read."""
        try:
            return self._store.scan_map(name, look)
        except NoSuchVolumeError:
            return None
        except BrokenError as error:
            self._broken_maps[name] = str(error)
            return None

    def _check(self, name: str, scan: Scan) -> bool:
        # What an import in progress names need not be there yet.
        if intake.is_pending(self._store, name):
            return False
        if scan.body not in self._bodies:
            scan.read(_Each(self._check_layer, self.verify))
            self._bodies.add(scan.body)
        return True

    def _check_layer(self, source: Source) -> None:
        if source not in self._checked:
            self._checked.add(source)
            self._keep(source, self._layer_fault(source))

    def _layer_fault(self, source: Source) -> str:
        try:
            deque(self._store.layer(source).blocks(), maxlen=0)
        except BrokenError as error:
            return str(error)
        return ""

    def damage(self, names: Sequence[str]) -> Iterator[Damage]:
        for name, reason in self._broken_maps.items():
            yield Damage(f"the map of {name}", reason, (name,))
        if not self._faults:
            return
        # What was away for a while, or went with what named it, is no damage.
        before = self._hits(names)
        again = {source: self._still(source) for source in self._faults}
        after = self._hits(names)
        for source, reason in again.items():
            hits = tuple(sorted(before[source] & after[source]))
            if reason and (hits or self._is_there(source)):
                what = f"block {source.owner.hex()}"
                if not source.is_content:
                    what = f"layer {source.owner.hex()}/{source.epoch}"
                yield Damage(what, reason, hits)
        if self._further:
            yield Damage(f"{self._further} further blocks and layers", "too much is damaged to name what it hits", ())

    def _hits(self, names: Iterable[str]) -> dict[Source, set[str]]:
        hits: dict[Source, set[str]] = {source: set() for source in self._faults}
        for name in names:
            for source in self._scan(name, self._faults_in) or ():
                hits[source].add(name)
        return hits

    def _still(self, source: Source) -> str:
        return self._fault_of(source.owner)[1] if source.is_content else self._layer_fault(source)

    def _faults_in(self, scan: Scan) -> set[Source]:
        """Looked for once in a body that clones have in common."""
        if scan.body not in self._faulty_bodies:
            found: set[Source] = set()

            def look(source: Source) -> None:
                if source in self._faults:
                    found.add(source)

            def look_at(digests: Iterable[bytes]) -> None:
                for digest in digests:
                    look(Source(digest, 0))

            scan.read(_Each(look, look_at))
            self._faulty_bodies[scan.body] = found
        return self._faulty_bodies[scan.body]

    def without_spoilt(self, damage: Iterable[Damage]) -> Iterator[Damage]:
        """Remove the blocks among the damage."""
        suspects = {source.owner for source in self._faults if source.is_content}
        # Listed before they are read once more: what was made anew since, whole, is not what is removed.
        versions = {digest: version for digest, version in self._store.contents() if digest in suspects}
        spoilt = {digest: version for digest, version in versions.items() if self._is_spoilt(digest)}
        removed = {digest for digest, version in spoilt.items() if self._store.remove_content(digest, version)}
        names = {f"block {digest.hex()}" for digest in removed}
        for one in damage:
            yield one._replace(removed=one.what in names)

    def _is_spoilt(self, digest: bytes) -> bool:
        """Whether it is wrong when it is read once more. What can't be read may be whole: that is no reason."""
        try:
            return self._name_of(digest) != digest
        except (BrokenError, StoreError, OSError):
            return False

    def _is_there(self, source: Source) -> bool:
        """What nothing names may have been removed since; a bad block that is there spoils the next import."""
        try:
            self._store.layer(source).readinto(0, 0, memoryview(bytearray(1)))
        except BrokenError:
            return False
        except (StoreError, OSError):
            pass
        return True

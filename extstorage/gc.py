# SPDX-License-Identifier: BSD-2-Clause
"""Garbage collection, while volumes are used: what no map names any more is given back.

Why nothing that is needed can go:

- What may go is listed first; a layer that is made later is not on the list.
- A layer that no map names can never be named again, and neither can a block of a frozen layer: names are copied from
  map to map, under the store's lock. So it is enough that there was one moment at which no map had the name. That
  moment is the last round of marking, which runs under that lock, over the maps that changed since the round before.
- A content block can be named again, by an import that finds it there. But it names first and touches then, and what
  was touched since it was listed is left alone.
- With a map that can't be read, nothing can be called garbage, and nothing is freed.

Nothing is remembered between runs: one that was killed is simply followed by another.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from extstorage.bitmaps import lookup
from extstorage.errors import BrokenError, NoSuchVolumeError
from extstorage.maps import Source
from extstorage.marks import Marks
from extstorage.names import MEBIBYTE, PAGE
from extstorage.progress import TELLING, Progress, untold
from extstorage.store import Store
from ganeti_plugin.log import info

#: The name of this work among those of which there is one at a time (`Store.only_one`).
WORK = "gc"

#: Rounds without the lock go on while more than this many maps have changed, but not for ever.
_FEW = 16
_MOST_ROUNDS = 4

#: Content blocks that may be garbage and are in memory at a time.
_MOST_SUSPECTS = 100_000


class Report(NamedTuple):
    """What was done, or, in a dry run, would be."""

    #: How many were read.
    maps: int
    #: Layers that were removed, and others of which blocks were freed.
    layers: int
    shrunk: int
    #: Content blocks that were removed.
    contents: int
    #: What killed creations and removals had left.
    leftovers: int
    #: Bytes.
    freed: int
    seconds: float
    dry_run: bool
    #: Why maps can't be read. With any of these, nothing was freed.
    faults: tuple[str, ...]


def collect(store: Store, *, dry_run: bool = False, progress: Progress = untold) -> Report:
    """Run one collection. Raises BusyError when another one runs."""
    with store.only_one(WORK):
        report = _Collection(store, dry_run, progress).run()
    if report.freed and not dry_run:
        counts = report.layers, report.contents, report.freed // MEBIBYTE
        info("%s: %d layers and %d content blocks removed, %d MiB freed", store.title, *counts)
    return report


class _Collection:
    def __init__(self, store: Store, dry_run: bool, progress: Progress) -> None:
        self._store = store
        self._dry_run = dry_run
        self._progress = progress
        self._marks = Marks()
        self._versions: dict[str, object] = {}
        self._faults: dict[str, str] = {}
        self._freed = 0

    def run(self) -> Report:
        began = time.monotonic()
        layers = list(self._store.layers(begun=True))
        for _ in range(_MOST_ROUNDS):
            if self._mark_changed() <= _FEW:
                break
        suspects = self._unnamed_contents()
        with self._store.locked():
            self._mark_changed()
        # Everything that takes long comes after the lock: whoever makes or removes a volume waits for it.
        leftovers = self._store.tidy(dry_run=self._dry_run)
        if not self._faults and not self._dry_run:
            self._store.forget_previous_maps()
        faults = tuple(self._faults[name] for name in sorted(self._faults))
        removed, shrunk, contents = (0, 0, 0) if faults else (*self._sweep(layers), self._sweep_contents(suspects))
        seconds = time.monotonic() - began
        counts = len(self._versions), removed, shrunk, contents, leftovers, self._freed
        return Report(*counts, seconds, self._dry_run, faults)

    def _mark_changed(self) -> int:
        """Read the maps that are new or have changed; answers with how many those were."""
        versions = self._store.versions()
        changed = 0
        self._faults.clear()
        for position, (name, version) in enumerate(versions.items()):
            if self._versions.get(name, self) == version:
                continue
            try:
                self._store.scan_map(name, self._marks.add)
            except NoSuchVolumeError:
                continue
            except BrokenError as error:
                self._faults[name] = str(error)
                continue
            self._versions[name] = version
            changed += 1
            self._progress(50 * position // len(versions))
        return changed

    def _unnamed_contents(self) -> list[tuple[bytes, object]]:
        """Content blocks that may be garbage; not more than fit into memory, so that there may be further ones."""
        found: list[tuple[bytes, object]] = []
        for count, (digest, version) in enumerate(self._store.contents()):
            if count % TELLING == 0:
                self._progress(50, f", {count} content blocks")
            if not self._named(digest):
                found.append((digest, version))
                if len(found) == _MOST_SUSPECTS:
                    break
        return found

    def _named(self, digest: bytes) -> bool:
        return self._marks.names_content(digest)

    def _sweep(self, candidates: list[Source]) -> tuple[int, int]:
        """Free layers that are garbage, or in part; answers with how many of each."""
        removed = shrunk = 0
        for position, source in enumerate(candidates):
            self._progress(50 + 50 * position // len(candidates))
            if not self._marks.names(source):
                self._freed += self._store.used(source) if self._dry_run else self._store.remove_layer(source)
                removed += 1
            else:
                freed = self._shrink(source)
                self._freed += freed
                shrunk += freed > 0
        return removed, shrunk

    def _shrink(self, source: Source) -> int:
        """Free the blocks of a frozen layer that no map names."""
        keep = self._marks.blocks(source)
        if keep is None:
            return 0
        if not self._dry_run:
            return self._store.free_blocks(source, keep)
        layer, is_kept = self._store.layer(source), lookup(keep)
        gone = (one for one in layer.blocks() if not is_kept(one[0]))
        return sum((layer.load_pages(index) if pages is None else pages).bit_count() * PAGE for index, pages in gone)

    def _sweep_contents(self, suspects: list[tuple[bytes, object]]) -> int:
        removed = 0
        while suspects:
            for position, freed in enumerate(self._store.each(self._free_content, suspects)):
                if position % TELLING == 0:
                    self._progress(99, f", {removed} content blocks removed")
                self._freed += freed
                removed += freed > 0
            if self._dry_run or len(suspects) < _MOST_SUSPECTS:
                break
            suspects = self._unnamed_contents()
            with self._store.locked():
                self._mark_changed()
            if self._faults:
                break
        return removed

    def _free_content(self, suspect: tuple[bytes, object]) -> int:
        digest, version = suspect
        if self._named(digest):
            return 0
        if self._dry_run:
            return self._store.content_used(digest)
        return self._store.remove_content(digest, version)

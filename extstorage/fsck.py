# SPDX-License-Identifier: BSD-2-Clause
"""Checking a store, while it is used: maps, facts, layers, bitmaps, contents, and what interrupted work left.

A repair does what is certain to be right, and says what is lost where data are missing; such blocks go on giving errors
when they are read, so that nobody takes zeros for data. It takes the locks that it needs, and leaves alone what is in
use.

What must never be, and is looked for first: two volumes that write the same layer, and a volume that may write a layer
that others name as frozen (a map older than what was made from it, such as one that somebody restored by hand).
"""

from __future__ import annotations

import contextlib
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from extstorage import gc, intake
from extstorage.bitmaps import bits_of, indexes_of, runs_of
from extstorage.digests import Digests, digests_in
from extstorage.errors import BadNameError, BrokenError, HeldError, NoSuchVolumeError
from extstorage.maps import CONTENT, DIGEST, Source, VolumeMap
from extstorage.marks import blocks_of_layers
from extstorage.names import check_name
from extstorage.pages import mask_of
from extstorage.progress import TELLING, Progress, untold
from extstorage.repairs import Repairs, epochs_of, heads_of, unreadable
from extstorage.scans import Scan
from extstorage.store import Store
from ganeti_plugin.errors import Error
from ganeti_plugin.log import note, warning

#: How often a map that changes again and again is read; its volume is in good use.
_ATTEMPTS = 5

#: Entries of a map that are looked at together.
_PART = 1 << 16


class Finding(NamedTuple):
    """Something that is not as it should be. `name` is empty when it concerns the whole store."""

    name: str
    text: str
    #: Of the blocks that can't be read: first and last of each run.
    blocks: tuple[tuple[int, int], ...] = ()
    #: What was done about it.
    repaired: str = ""
    #: Whether it is damage; otherwise it is what interrupted work left.
    damage: bool = True


def check(store: Store, name: str = "", *, repair: bool = False, progress: Progress = untold) -> list[Finding]:
    """Check one name, or all. Raises NoSuchVolumeError, and BusyError while a collection runs."""
    if name and not store.exists(name):
        raise NoSuchVolumeError(what="volume, snapshot or image", name=name, store=store.title)
    with store.only_one(gc.WORK):
        work = _Check(store, repair, progress)
        if not name:
            # Of one name, each content is asked for instead.
            work.list_contents()
        return work.run([name] if name else store.possible_names())


class _Found(NamedTuple):
    """What is wrong with the body of a map."""

    #: Layers, and the blocks that name them, as bitmaps.
    faulty: Mapping[Source, int]
    #: Whether a number in it means nothing: the checksum says only that it is as it was written.
    is_odd: bool
    #: Content blocks, and the blocks that consist of them, as a bitmap.
    missing: int
    holes: int


class _Body:
    """Looks at the body of a map."""

    def __init__(
        self,
        faulty_of: Callable[[tuple[Source, ...]], set[Source]],
        missing_of: Callable[[bytes], bytearray],
    ) -> None:
        self._faulty_of = faulty_of
        self._missing_of = missing_of
        self._sources: tuple[Source, ...] = ()
        self._highest = self._highest_content = -1
        self.faulty: dict[Source, int] = {}
        #: A byte for each content block.
        self.missing = bytearray()

    @property
    def is_odd(self) -> bool:
        return self._highest > len(self._sources) or self._highest_content >= len(self.missing)

    def sources(self, sources: tuple[Source, ...]) -> None:
        self._sources = sources
        self.faulty = dict.fromkeys(self._faulty_of(sources), 0)

    def numbers(self, first: int, numbers: array[int]) -> None:
        for start in range(0, len(numbers), _PART):
            some = set(numbers[start : start + _PART])
            contents = {number for number in some if number & CONTENT}
            self._highest = max(self._highest, max(some - contents, default=0))
            self._highest_content = max(self._highest_content, max(contents, default=CONTENT - 1) - CONTENT)
        for source, bits in blocks_of_layers(self._sources, first, numbers) if self.faulty else ():
            if source in self.faulty:
                self.faulty[source] |= bits

    def digests(self, digests: bytes) -> None:
        self.missing += self._missing_of(digests)


class _Holes:
    """Finds the blocks that consist of content that is missing."""

    def __init__(self, missing: bytearray) -> None:
        self._missing = missing
        #: A byte for each block.
        self.blocks = bytearray()

    def sources(self, sources: tuple[Source, ...]) -> None:
        """They are not meant."""

    def numbers(self, first: int, numbers: array[int]) -> None:
        self.blocks.extend(bytes(max(0, first + len(numbers) - len(self.blocks))))
        for index, number in enumerate(numbers, first):
            if number & CONTENT and self._missing[number ^ CONTENT]:
                self.blocks[index] = 1

    def digests(self, digests: bytes) -> None:
        """They are known."""


def _none_of(digests: bytes) -> bytearray:
    return bytearray(len(digests) // DIGEST)


class _ChangedError(Exception):
    """The map was changed, or removed, while it was checked."""


class _Check:
    def __init__(self, store: Store, repair: bool, progress: Progress) -> None:
        self._store = store
        self._repair = repair
        self._repairs = Repairs(store)
        self._progress = progress
        self._percent = self._seen = 0
        self._found: list[Finding] = []
        self._layers: dict[Source, BrokenError | None] = {}
        self._contents = Digests()
        self._bodies: dict[object, _Found] = {}
        self._pending = False
        self._epochs: dict[bytes, list[int]] = {}
        self._version: object = None

    def run(self, names: Sequence[str]) -> list[Finding]:
        # Before the maps are read: a volume makes its layers after its map.
        self._epochs = epochs_of(self._store)
        for position, (name, is_quiet) in enumerate(zip(names, self._store.each(self._is_quiet, names), strict=True)):
            self._percent = 100 * position // len(names)
            self._progress(self._percent)
            self._check_name(name, is_quiet)
        self._check_owners(names)
        self._check_leftovers()
        return self._found

    def list_contents(self) -> None:
        """Also those that no collection would find; once it can, it knows whether anybody needs them."""
        forgotten = 0
        for digest, is_known in self._store.walk_contents():
            self._tell(1)
            if self._contents.add(digest) and not is_known:
                forgotten += 1
                if self._repair:
                    self._store.enter_content(digest)
        if forgotten:
            repaired = "entered again, for the next collection" if self._repair else ""
            text = f"{forgotten} content blocks are stored that no collection would find"
            self._note("", text, repaired=repaired, damage=False)

    def _tell(self, contents: int) -> None:
        """A single map may name millions of them."""
        before, self._seen = self._seen, self._seen + contents
        if before // TELLING < self._seen // TELLING:
            self._progress(self._percent, f", {self._seen} content blocks")

    def _note(self, name: str, text: str, *, repaired: str = "", damage: bool = True, blocks: int = 0) -> None:
        """One more finding; `blocks` is a bitmap."""
        found = Finding(name, text, tuple((first, end - 1) for first, end in runs_of(blocks)), repaired, damage)
        self._found.append(found)
        note("%s: %s: %s%s", self._store.title, name or "store", text, f" ({repaired})" if repaired else "")

    def _check_leftovers(self) -> None:
        count = self._store.tidy(dry_run=not self._repair)
        if count:
            repaired = "removed" if self._repair else ""
            self._note("", f"killed creations and removals left {count} traces", repaired=repaired, damage=False)

    # One name.

    def _is_quiet(self, name: str) -> bool:
        """Whether there is nothing to say of it but of its map; several are asked at a time."""
        try:
            facts = self._store.read_info(name)
            return not intake.may_be_pending(facts) and not self._store.lock_is_asked_for(name)
        except (BrokenError, NoSuchVolumeError):
            return False

    def _check_name(self, name: str, is_quiet: bool) -> None:
        try:
            check_name(name)
        except BadNameError as error:
            self._note(name, f"no volume can have this name: {error}")
            return
        self._pending = False
        with contextlib.suppress(NoSuchVolumeError):
            if not is_quiet:
                self._check_facts(name)
                self._check_request(name)
            self._check_loss(name)
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(_ChangedError, NoSuchVolumeError):
                self._version = self._store.map_version(name)
                self._check_map(name)
                return

    def _check_map(self, name: str) -> None:
        """Raises _ChangedError when the map changes before a fault is noted: then it is no fault yet."""
        try:
            head, found = self._store.scan_map(name, self._look)
        except BrokenError as error:
            self._confirm(name)
            self._note(name, str(error), repaired=self._repaired(name, self._repairs.restore_map))
            return
        if found.is_odd:
            self._note(name, "the map names layers that it does not list")
            return
        for source, bits in found.faulty.items():
            self._check_layer(name, source, bits)
        # There is none before the first write.
        if not head.read_only and head.epoch in self._epochs.get(head.owner, ()):
            self._check_current(name, head)
        if found.missing and not self._pending:
            self._confirm(name)
            self._note(name, f"{found.missing} content blocks are missing", blocks=found.holes)

    def _look(self, scan: Scan) -> tuple[VolumeMap, _Found]:
        """The head, and what is wrong with the body, which is looked at once for all clones."""
        found = self._bodies.get(scan.body)
        if found is None:
            # What an import in progress names need not be there yet.
            body = _Body(self._faulty, _none_of if self._pending else self._are_missing)
            scan.read(body)
            holes = _Holes(body.missing)
            if any(body.missing) and not body.is_odd:
                scan.read(holes)
            found = _Found(body.faulty, body.is_odd, sum(body.missing), bits_of(holes.blocks, 1))
            if not self._pending:
                self._bodies[scan.body] = found
        return scan.head, found

    def _faulty(self, sources: tuple[Source, ...]) -> set[Source]:
        new = [source for source in sources if source not in self._layers]
        self._layers.update(zip(new, self._store.each(self._look_at_layer, new), strict=True))
        return {source for source in sources if self._layers[source]}

    def _confirm(self, name: str) -> None:
        if self._store.map_version(name) != self._version:
            raise _ChangedError

    def _check_facts(self, name: str) -> None:
        self._pending = intake.is_pending(self._store, name)
        try:
            self._store.read_info(name)
        except BrokenError as error:
            done = self._repaired(name, self._repairs.forget_facts)
            self._note(name, str(error), repaired=done)
            return
        if self._pending and not self._is_held(name):
            self._note(name, "an interrupted import; the next one of this image goes on", damage=False)

    def _check_layer(self, name: str, source: Source, bits: int, *, current: bool = False) -> None:
        """A layer and the blocks that this map needs of it."""
        self._faulty((source,))
        error = self._layers[source]
        bad = unreadable(self._store, source, bits) if error else 0
        if not bad:
            return
        self._confirm(name)

        def rebuild(_name: str) -> str:
            return self._repairs.rebuild(name, source, bad, current=current)

        self._note(name, str(error), blocks=bad, repaired=self._repaired(name, rebuild))

    def _check_current(self, name: str, found: VolumeMap) -> None:
        if self._store.atomic_pages and self._is_missing(found.current):
            self._confirm(name)
            repaired = self._repaired(name, self._repairs.make_layer)
            self._note(name, "a first write was killed before its layer was made", repaired=repaired, damage=False)
            return
        self._check_layer(name, found.current, mask_of(0, found.blocks), current=True)

    def _is_missing(self, source: Source) -> bool:
        """Of a layer that is entered. Where bitmaps are kept with the data, only such a death leaves that."""
        try:
            self._store.layer(source)
        except BrokenError:
            return True
        return False

    def _look_at_layer(self, source: Source) -> BrokenError | None:
        """What is wrong with a layer, whatever map names it."""
        try:
            deque(self._store.layer(source).blocks(), maxlen=0)
        except BrokenError as error:
            return error
        return None

    def _are_missing(self, digests: bytes) -> bytearray:
        """A byte for each of them."""
        missing = bytearray(digest not in self._contents for digest in digests_in(digests))
        self._tell(len(missing))
        suspects = list(indexes_of(bits_of(missing, 1)))
        names = [digests[number * DIGEST : (number + 1) * DIGEST] for number in suspects]
        for number, there in zip(suspects, self._store.each(self._can_be_read, names), strict=True):
            missing[number] = not there
        return missing

    def _can_be_read(self, digest: bytes) -> bool:
        """It may have come since the check began, or be in a store of Pithos."""
        try:
            self._store.layer(Source(digest, 0)).readinto(0, 0, memoryview(bytearray(1)))
        except BrokenError:
            return False
        return True

    def _check_request(self, name: str) -> None:
        if not self._store.lock_is_asked_for(name) or self._is_held(name):
            return
        if self._repair:
            self._store.forget_request(name)
        repaired = "forgotten" if self._repair else ""
        self._note(name, "a migration that ended asked for the lock", repaired=repaired, damage=False)

    def _check_loss(self, name: str) -> None:
        reason = self._store.loss(name)
        if reason:
            text = f"a flush failed, so what was written before may be lost: {reason}"
            self._note(name, text, repaired=self._repaired(name, self._repairs.accept_loss))

    def _is_held(self, name: str) -> bool:
        """Asked only about what nobody is about to open: for a moment, the lock is ours."""
        try:
            self._store.lock_volume(name).release()
            return False
        except (HeldError, NoSuchVolumeError):
            return True

    def _repaired(self, name: str, work: Callable[[str], str]) -> str:
        """What a repair did; "" when there is none, or when somebody uses the volume."""
        if not self._repair:
            return ""
        try:
            return work(name)
        except (Error, ValueError) as error:
            warning("%s: not repaired: %s", name, error)
            return ""

    def _check_owners(self, names: Sequence[str]) -> None:
        """Between two maps that are read while volumes are used, anything may seem wrong: look again under the lock."""
        if not self._clashes():
            return
        with self._store.locked():
            clashes = self._clashes()
        for name, text, can_advance in clashes:
            if name in names:
                self._note(name, text, repaired=self._repaired(name, self._repairs.advance) if can_advance else "")

    def _clashes(self) -> list[tuple[str, str, bool]]:
        """Volumes whose layer is not theirs alone: name, what is wrong, whether a newer map can be made."""
        epochs = epochs_of(self._store)
        writers: dict[bytes, tuple[str, int]] = {}
        frozen: dict[bytes, tuple[int, str]] = {}
        found = []
        for name, head in heads_of(self._store):
            for source in head.sources:
                frozen[source.owner] = max(frozen.get(source.owner, (-1, "")), (source.epoch, name))
            if not head.read_only:
                if head.owner in writers:
                    text = f"it writes the same layer as {writers[head.owner][0]!r}: use neither, and remove one"
                    found.append((name, text, False))
                writers[head.owner] = name, head.epoch
        for owner, (name, epoch) in writers.items():
            highest, other = frozen.get(owner, (-1, ""))
            if highest >= epoch:
                text = f"its map is older than that of {other!r}: it may write what is frozen there"
                found.append((name, text, True))
            elif max(epochs.get(owner, ()), default=0) > epoch:
                found.append((name, "its map is older than its data", True))
        return found

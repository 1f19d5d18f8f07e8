# SPDX-License-Identifier: BSD-2-Clause
"""One user of one volume: who may read and write it when, and what happens at open, close, snapshot and grow.

There is one writer. It holds the volume's lock in the store, and leaves its name there; the lock dies with it. The map
and the owned pages are read when the lock is gained, and written back before it is given up. What a session may do
without asking is its mode (`modes.py`).
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from extstorage import maps
from extstorage.direct_reads import DirectReads
from extstorage.errors import (
    AlreadyThereError,
    DoubtfulError,
    FencedError,
    HeldError,
    NotOpenError,
    ReadOnlyError,
)
from extstorage.freezing import Freezing
from extstorage.gate import Gate
from extstorage.identity import myself
from extstorage.maps import VolumeMap
from extstorage.modes import Mode, leave_mode, left_mode
from extstorage.names import check_name, check_size
from extstorage.run_pages import RunMarks, RunPages
from extstorage.store import Holder, Info, Store, VolumeLock
from extstorage.volume import Extent, Volume
from ganeti_plugin.log import debug, info, warning

#: Seconds that a migration's source has to flush and yield.
YIELD_TIMEOUT = 60.0
YIELD_POLL = 0.02

#: Seconds in which the server of a migration's source comes back that died: systemd starts it at once.
RETURN_TIMEOUT = 5.0

#: Seconds that a restarted server waits for a lock that it had. A command may have it for a moment (who has it? take a
#: snapshot of a volume that nobody serves), and a server that gives up has nothing but errors for its guest.
RESUME_TIMEOUT = 10.0

#: Before a snapshot holds requests, it flushes and brings the new map up to date until that should take no longer than
#: this the next time, in seconds; at most so often.
SHORT_ROUND = 0.05
ROUNDS = 8


class _DiedError(HeldError):
    """The lock is free, and what its holder acknowledged may be known to its node only."""


class Session:
    """See the module. Thread-safe. `run` is the volume's directory under /run, if there is one.

    `direct`: who reads plain blocks without asking us. It stops when the lock is gone, and begins anew with each map.
    """

    def __init__(self, store: Store, name: str, run: Path | None = None, direct: DirectReads | None = None) -> None:
        self._store = store
        self._name = name
        self._run = run
        self._direct = direct
        #: Where marks of owned pages go until a flush; a store that keeps them with the data needs none.
        self._marks = RunMarks(None if store.atomic_pages else run)
        self._gate = Gate()
        self._control = threading.RLock()
        self._lock: VolumeLock | None = None
        self._token = ""
        self._fenced = False
        self._in_doubt = False
        #: Why what was acknowledged may be lost, as long as we hold the lock; else "".
        self.loss = ""
        self._seen: object = store.map_version(name)
        found = store.read_map(name)
        if found.read_only:
            self._lock = store.lock_volume(name, shared=True)
        try:
            self._begin(found)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _begin(self, found: VolumeMap) -> None:
        if self._lock is not None:
            if self._store.map_version(self._name) != self._seen:
                # It was hashed in between: what it named before may be collected now.
                found = self._store.read_map(self._name)
            if not found.read_only:
                # Now a volume has the name, and nobody writes one with a shared lock.
                self._lock.release()
                self._lock = None
        self.mode = Mode.SNAPSHOT if found.read_only else Mode.ATTACHED
        self._volume = self._volume_at(found, cached=found.read_only)

    def _volume_at(self, volume_map: VolumeMap, *, cached: bool, run: RunPages | None = None) -> Volume:
        """Nothing is read directly any more with regard to the one before."""
        direct = self._direct.begin() if self._direct else None
        return Volume(self._store, volume_map, cached=cached, run=run, direct=direct)

    @property
    def size(self) -> int:
        return self._volume.map.size

    @property
    def holds_lock(self) -> bool:
        return self._lock is not None and self.mode is not Mode.SNAPSHOT

    # Requests.

    def _enter(self, write: bool) -> Volume:
        """Pass the gate with the volume to use; every call is followed by `_gate.leave()`."""
        while True:
            self._gate.enter()
            try:
                volume = self._usable(write)
            except BaseException:
                self._gate.leave()
                raise
            if volume is not None:
                return volume
            self._gate.leave()
            self._obtain_for_request()

    def _usable(self, write: bool) -> Volume | None:
        """The volume for a request, or None when the lock is needed first."""
        if self._fenced:
            raise FencedError(name=self._name)
        if self._in_doubt:
            return None
        if self._lock is not None:
            if write and self.mode is Mode.SNAPSHOT:
                raise ReadOnlyError(name=self._name)
            return self._volume
        if self.mode is Mode.SHARED:
            return None
        if not write:
            return self._refreshed()
        if self.mode is Mode.CLOSED:
            raise NotOpenError(name=self._name)
        return None

    def _refreshed(self) -> Volume:
        """For reads without the lock: the map as it is now."""
        version = self._store.map_version(self._name)
        if version != self._seen:
            self._volume = self._volume_at(self._store.read_map(self._name), cached=False)
            self._seen = version
        return self._volume

    def readinto(self, buffer: memoryview, offset: int) -> None:
        volume = self._enter(False)
        try:
            volume.readinto(buffer, offset)
        finally:
            self._gate.leave()

    def write(self, data: memoryview, offset: int) -> None:
        volume = self._enter(True)
        try:
            volume.write(data, offset)
        finally:
            self._gate.leave()

    def zero(self, offset: int, length: int) -> None:
        volume = self._enter(True)
        try:
            volume.zero(offset, length)
        finally:
            self._gate.leave()

    def discard(self, offset: int, length: int) -> None:
        volume = self._enter(True)
        try:
            volume.discard(offset, length)
        finally:
            self._gate.leave()

    def extents(self, offset: int, length: int) -> list[Extent]:
        volume = self._enter(False)
        try:
            return volume.extents(offset, length)
        finally:
            self._gate.leave()

    def prefetch(self, offset: int, length: int) -> None:
        volume = self._enter(False)
        try:
            volume.prefetch(offset, length)
        finally:
            self._gate.leave()

    @property
    def is_durable(self) -> bool:
        """Whether what is acknowledged needs no flush to survive the machine."""
        return self._store.atomic_pages

    def begin_flush(self) -> None:
        """Have the store begin with what the next flush will wait for. Requests go on. Raises OSError."""
        self._volume.begin_flush()

    def flush(self) -> None:
        """What was acknowledged is durable afterwards. Without the lock, it was flushed when that was given up."""
        self._gate.enter()
        try:
            if self._fenced:
                raise FencedError(name=self._name)
            if self.holds_lock:
                self._flush_held()
        finally:
            self._gate.leave()

    def _flush_held(self) -> None:
        # Before: bitmaps are written whole, and ours would hide what a new writer has. After: what we say must be true.
        self._check_lock()
        try:
            self._volume.flush()
        except Exception as error:
            if self._volume.has_failed and not self.loss:
                self._say_lost(str(error))
            raise
        self._check_lock()

    def _say_lost(self, reason: str) -> None:
        """The kernel tells one process once; whoever has the volume next must not take it for safe."""
        self.loss = reason
        if self._lock is not None:
            self._note(self._lock, loss=reason)

    def _check_lock(self) -> None:
        if self._lock_is_lost():
            self._fence()
            raise FencedError(name=self._name)

    def _fence(self) -> None:
        self._fenced = True
        if self._direct is not None:
            self._direct.begin()

    def _lock_is_lost(self) -> bool:
        """Whether another server took the volume over."""
        if self._lock is None or self.mode is Mode.SNAPSHOT:
            return False
        holder = self._lock.holder()
        return holder is None or holder.token != self._token

    # The lock.

    def _obtain_for_request(self) -> None:
        with self._control:
            if self._in_doubt:
                self._settle()
            elif self.mode is Mode.SHARED:
                self._obtain_from_peer()
            elif self.mode is Mode.ATTACHED:
                self._obtain(self._store.patience)
                self._set_mode(Mode.EXCLUSIVE)
            elif self.mode is Mode.EXCLUSIVE:
                self._obtain(self._store.patience)

    def _obtain_from_peer(self) -> None:
        lived = time.monotonic()
        deadline = lived + YIELD_TIMEOUT
        patience = 0.0
        while True:
            try:
                self._obtain(patience, from_dead=time.monotonic() >= lived + RETURN_TIMEOUT)
                self._store.forget_request(self._name)
                return
            except HeldError as error:
                if not isinstance(error, _DiedError):
                    lived = time.monotonic()
                if lived >= deadline:
                    raise
            self._store.ask_for_lock(self._name)
            # The peer may have died: from now on, wait long enough to see it. One that yields ends the wait at once.
            patience = self._store.patience
            time.sleep(YIELD_POLL)

    def _obtain(self, patience: float = 0.0, *, from_dead: bool = True, lost: bool = False) -> None:
        """Take the lock, then read what the last holder left. Raises HeldError; see `Store.lock_volume`.

        Without `from_dead`, not from one who died elsewhere: what they acknowledged would be void. With `lost`, also
        where something may be lost, for a guest that was told so: each flush goes on failing.
        """
        if self._lock is not None:
            self._settle()
            return
        lock = self._store.lock_volume(self._name, patience=patience)
        try:
            before = lock.holder()
            loss = before.loss if before else ""
            if loss and not lost:
                raise DoubtfulError(name=self._name, reason=loss)
            if before is not None and not from_dead and self._died_elsewhere(before):
                raise _DiedError(name=self._name, holder=before)
            holder = myself()._replace(loss=loss)
            self._marks.hand_over(before.token if before else "", holder.token)
            lock.record(holder)
            self._marks.belong_to(holder.token)
            with self._gate.hold(self._name):
                self.loss = loss
                self._load_settled()
                self._token, self._lock = holder.token, lock
        except BaseException:
            if self._lock is not lock:
                lock.release()
            raise
        debug("%s: took the lock", self._name)

    def _died_elsewhere(self, before: Holder) -> bool:
        if self._store.atomic_pages or before.yielded:
            return False
        return not self._marks.are_true_under(before.token)

    def _load_settled(self) -> None:
        """Begin with the map that is there: an older one would not know what will be flushed in this one's epoch."""
        found = self._store.read_map(self._name)
        self._store.settle_map(self._name)
        self._load(found)

    def _load(self, volume_map: VolumeMap) -> None:
        self._volume = self._volume_at(volume_map, cached=True, run=self._marks.pages(volume_map.current))
        if self.loss:
            self._volume.distrust(OSError(errno.EIO, self.loss))

    def _give_up(self) -> None:
        """Flush and release the lock. If the flush fails, the lock is kept."""
        if not self.holds_lock:
            return
        with contextlib.suppress(FencedError):
            self._check_lock()
            self._settle()
            self.flush()
        with self._gate.hold(self._name):
            if self._lock is None:
                return
            with contextlib.suppress(FencedError):
                self._flush_held()
            # One that was taken over can't even ask the store, if that has shut it out; `open` begins anew.
            if not self._fenced:
                # First what can fail: a volume without what is cached must not be written to.
                self._seen = self._store.map_version(self._name)
                self._volume = self._volume_at(self._volume.map, cached=False)
                # Without it, the other side of a migration waits for us in vain.
                self._note(self._lock, yielded=True)
            self._marks.forget()
            self._lock.release()
            self._lock = None
            self._token = ""
        debug("%s: gave up the lock", self._name)

    def _note(self, lock: VolumeLock, *, yielded: bool = False, loss: str = "") -> None:
        """Add to our record, if that can be done. A store with `atomic_pages` has nothing that only we know."""
        if self._store.atomic_pages:
            return
        with contextlib.suppress(OSError):
            last = lock.holder()
            if last is not None and last.token == self._token:
                lock.record(last._replace(yielded=yielded, loss=loss))

    def poll(self) -> None:
        """To be called now and then: have direct reads go on if we have the lock; yield to a migration's other side."""
        self._extend_direct()
        if self.mode is Mode.SHARED and self.holds_lock and self._store.lock_is_asked_for(self._name):
            with self._control:
                if self.mode is Mode.SHARED:
                    self._give_up()

    def _extend_direct(self) -> None:
        lock = self._lock
        if self._direct is not None:
            self._direct.trust(lock.sure_until() if lock is not None and not self._fenced else 0.0)

    # What Ganeti asks for.

    def open(self, exclusive: bool) -> None:
        """Repeatable, in any mode. Raises HeldError, naming the holder, when another node has the volume.

        Raises DoubtfulError when what an earlier holder wrote may be lost.
        """
        self._open(exclusive, lost=False)

    def _open(self, exclusive: bool, *, lost: bool) -> None:
        with self._control:
            if self.mode is Mode.SNAPSHOT:
                return
            if self._fenced or self._lock_is_lost():
                self._drop_lost_lock()
            if exclusive:
                if self.mode is Mode.SHARED and self._lock is None:
                    self._obtain_from_peer()
                self._obtain(self._store.patience, lost=lost)
            self._set_mode(Mode.EXCLUSIVE if exclusive else Mode.SHARED)

    def _drop_lost_lock(self) -> None:
        """Begin anew after another server took the volume over: what was not flushed then is lost."""
        with self._gate.hold(self._name):
            # First of all nobody may rely on the lock: a store that has shut this client out begins anew then, too.
            self._fence()
            if self._lock is not None:
                self._lock.release()
            self._lock, self._token = None, ""
            self._volume = self._volume_at(self._store.read_map(self._name), cached=False)
            self._seen = self._store.map_version(self._name)
            self._marks.forget()
            self._fenced = self._in_doubt = False

    def close(self) -> None:
        """Flush and release; a holder elsewhere is not disturbed."""
        with self._control:
            if self.mode is Mode.SNAPSHOT:
                return
            self._give_up()
            self._set_mode(Mode.CLOSED)

    def resume(self) -> None:
        """Go on in the mode in which a predecessor died, and with what it had acknowledged."""
        if self.mode is Mode.SNAPSHOT or self._run is None:
            return
        mode = left_mode(self._run)
        left = self._marks.are_left()
        try:
            if mode is Mode.EXCLUSIVE or (mode is Mode.ATTACHED and left):
                self._reopen()
                return
            if mode in (Mode.SHARED, Mode.CLOSED):
                self.mode = mode
            if mode is Mode.SHARED and left:
                # Whoever flushes next, or reads on the other side, must not miss them.
                with self._control:
                    self._obtain(self._store.patience, lost=True)
        except HeldError as error:
            if mode is not Mode.SHARED:
                self.mode = Mode.CLOSED
            warning("%s", error)

    def _reopen(self) -> None:
        deadline = time.monotonic() + RESUME_TIMEOUT
        while True:
            try:
                self._open(True, lost=True)
                return
            except HeldError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(YIELD_POLL)

    def _set_mode(self, mode: Mode) -> None:
        if self.mode is not mode:
            info("%s: %s, was %s", self._name, mode.value, self.mode.value)
        self.mode = mode
        if self._run is not None:
            leave_mode(self._run, mode)

    def shutdown(self) -> None:
        """The orderly end: flush, release, leave nothing under /run but the mode."""
        with self._control:
            if self.mode is Mode.SNAPSHOT and self._lock is not None:
                self._lock.release()
                self._lock = None
            self._give_up()

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """With the lock, if need be only for this piece of work."""
        with self._control:
            if self.mode is Mode.SNAPSHOT:
                raise ReadOnlyError(name=self._name)
            had = self._lock is not None
            if self.mode is Mode.SHARED:
                self._obtain_from_peer()
            else:
                self._obtain(self._store.patience)
            try:
                yield
            finally:
                if not had and self.mode in (Mode.ATTACHED, Mode.CLOSED):
                    self._give_up()

    def snapshot(self, name: str, facts: Info | None = None) -> None:
        """Freeze the volume as it is between two requests, under a new name.

        Without `facts`, the volume's properties are kept beside it.

        The volume's own map comes first: a death before the second write leaves a layer more and nothing else.
        """
        check_name(name, "the snapshot name")
        with self._exclusively():
            if facts is None:
                properties = self._store.read_info(self._name).properties
                facts = Info(created=time.time(), origin=self._name, properties=properties)
            started = time.monotonic()
            self.flush()
            took = time.monotonic() - started
            with self._store.locked():
                if self._store.exists(name):
                    raise AlreadyThereError(name=name, store=self._store.title, what="volume, snapshot or image")
                started = time.monotonic()
                freezing = Freezing(self._volume.map, self._volume.owned())
                self._approach(freezing, took + time.monotonic() - started)
                # Kept until requests go on: letting go of a large volume's marks takes as long as freezing them.
                frozen = self._volume
                with self._gate.hold(self._name):
                    self._flush_held()
                    new = freezing.update(frozen.newly_owned())
                    if freezing.is_needed:
                        self._replace_map(*new)
                del frozen, freezing, new
                self._store.create_copy(name, self._name, maps.as_snapshot(self._volume.map), facts)
        info("%s: snapshot %s taken", self._name, name)

    def _approach(self, freezing: Freezing, took: float) -> None:
        """Do what came up during the last round, until that should be little: requests wait for what is left.

        `took`: seconds of the round that has been. Each round is shorter than the one before in about the same ratio.
        """
        expected = took
        for _ in range(ROUNDS):
            if expected < SHORT_ROUND:
                return
            started, before = time.monotonic(), took
            self.flush()
            freezing.update(self._volume.newly_owned())
            took = time.monotonic() - started
            expected = took * min(1.0, took / before)

    def _replace_map(self, new: VolumeMap, packed: bytes = b"") -> None:
        """Go on with another map. If that fails, nothing is read or written before it is known which one counts.

        For what is written into the layer of an epoch that is over is not seen any more.
        """
        self._in_doubt = True
        self._store.write_map(self._name, new, packed)
        self._load(new)
        self._in_doubt = False

    def _settle(self) -> None:
        if self._in_doubt:
            with self._gate.hold(self._name):
                self._load_settled()
                self._in_doubt = False

    def grow(self, size: int) -> None:
        """Make the volume larger; clients see it when they connect again."""
        check_size(size)
        with self._exclusively(), self._store.locked(), self._gate.hold(self._name):
            if size <= self._volume.map.size:
                return
            self._store.check_size(size)
            self._flush_held()
            self._replace_map(maps.grow(self._volume.map, size))
        info("%s: grown to %d bytes", self._name, size)

# SPDX-License-Identifier: BSD-2-Clause
"""Locks in RADOS: a record that its holder renews, and changes only if nobody else did.

    object   {"exclusive": ENTRY or null, "shared": [ENTRY...], "last": HOLDER or null, ...}
    ENTRY    who: id, node, boot, pid, its start, since; address of its RADOS client; lease; beat (counts renewals)

A holder renews its entry every third of its lease. One who wants the lock takes over a holder

- that is a process of this machine (same boot, same process namespace) and has ended: at once;
- whose beat stood still for a whole lease, by the clock of the one who waits: no clocks are compared. Time in which the
  waiting one saw nothing, because the cluster did not answer or it was stopped itself, does not count: then the holder
  may not have been able to renew, either.

Before it enters itself, it has the cluster shut out the RADOS client of the one it takes over (the OSDs' blocklist). So
a holder that was only slow, or that comes back, can't write; not even what it had sent already. Readers of snapshots
are taken out without that. librados' own advisory locks can do neither: they do not expire, or expire without a fence.

A client that had no answer to a change does not release its locks: they are taken over like those of the dead. For the
change may still arrive, over what the next holder does, if that one has not had it shut out.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from extstorage.errors import FencedClientError, HeldError
from extstorage.names import token
from extstorage.rados_errors import ChangedObjectError, LostLockError, NoObjectError, RadosError
from extstorage.rados_pool import Change, Client
from extstorage.store import Holder
from ganeti_plugin.errors import Error
from ganeti_plugin.log import info, warning

#: Much longer than any client that is shut out may go on trying.
FENCE_SECONDS = 24 * 3600

#: The entries that this process may have left on record, by any client: it does not rely on them, so they are free.
_LEFT: set[str] = set()

#: Seconds that a process waits at its end for a cluster that does not answer.
_FAREWELL = 2.0

#: Bytes of a lock's object: each reader of a snapshot has an entry there.
_LARGEST = 1 << 20

#: The part of a lease after a renewal in which nobody can have taken the lock over: who waits sees a whole one pass.
_SURE = 2 / 3

#: Seconds between two looks at a lock that somebody has.
_POLL = 0.1


class Identity(NamedTuple):
    """A process, so that others on the same machine can see whether it lives."""

    node: str
    boot: str
    pid: int
    start: int

    @classmethod
    def own(cls) -> Identity:
        pid = os.getpid()
        return cls(os.uname().nodename, machine(), pid, _start_of(pid) or 0)

    def has_ended(self) -> bool:
        """Whether the process surely is no more; False for one that can't be seen from here."""
        if self.boot != machine() or not self.pid:
            return False
        try:
            # /proc may hide the processes of other users (hidepid), kill(2) does not.
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        start = _start_of(self.pid)
        return start is not None and start != self.start


def machine() -> str:
    """Names this boot, and the space in which its process numbers mean something."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return token()


def _start_of(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None if it can't be seen, 0 if only its parent still knows it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


State = dict[str, Any]
Entry = dict[str, Any]


def _identity_of(entry: Entry) -> Identity:
    return Identity(str(entry["node"]), str(entry["boot"]), int(entry["pid"]), int(entry["start"]))


def _holder_of(entry: Entry) -> Holder:
    return Holder(str(entry["id"]), str(entry["node"]), str(entry["boot"]), int(entry["pid"]), float(entry["since"]))


class HeldLock:
    """A lock that is held, and renewed by the thread of `Locks`."""

    def __init__(self, locks: Locks, key: str, entry: Entry, state: State, version: int) -> None:
        self.key = key
        self.id = str(entry["id"])
        self.lost = False
        self.version = version
        self.state = state
        self.mutex = threading.Lock()
        #: When the last renewal began that succeeded, in seconds of CLOCK_BOOTTIME: others' leases go on in our sleep.
        self.renewed = 0.0
        self._locks = locks

    def sure_until(self) -> float:
        return 0.0 if self.lost or self._locks.are_lost else self.renewed + _SURE * self._locks.lease

    def holder(self) -> Holder | None:
        """The last holder on record, which is ours after `record`; None when the lock was lost."""
        last = self.state.get("last")
        return None if not last or self.lost or self._locks.are_lost else Holder(**last)

    def record(self, holder: Holder) -> None:
        self._locks.change(self, lambda state: state.update(last=holder._asdict()))

    def note(self, name: str, value: object) -> None:
        """Keep a word beside the lock, for whoever holds it next."""
        self._locks.change(self, lambda state: state.update({name: value}))

    def release(self) -> None:
        self._locks.release(self)


class Locks:
    """The locks of one client. `identity` is who says to hold them."""

    def __init__(self, client: Client, lease: float, identity: Identity) -> None:
        self._client = client
        self._objects = client.objects
        self.lease = lease
        self._identity = identity
        self._held: dict[str, HeldLock] = {}
        self._users: set[str] = set()
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def are_lost(self) -> bool:
        return self._objects.fenced

    @property
    def are_used(self) -> bool:
        """Whether somebody still believes to hold one."""
        return bool(self._users)

    # Taking.

    def take(self, key: str, name: str, *, shared: bool = False, patience: float = 0.0) -> HeldLock:
        """Raises HeldError: at once if a holder is known to live, else after `patience` seconds."""
        deadline = time.monotonic() + patience
        watch = _Watch(self.lease / 2)
        while True:
            asked = time.monotonic()
            state, version = self._load(key)
            deadline += watch.looked(asked)
            living = self._living(state, shared, watch)
            if not living:
                entry = self._new_entry()
                try:
                    return self._enter(key, entry, shared, state, version)
                except ChangedObjectError:
                    continue
            # Without patience, "known" is what the record says.
            if watch.knows(living) or time.monotonic() >= deadline:
                raise HeldError(name=name, holder=_holder_of(living[0]))
            _pause(_POLL)

    def take_within(self, key: str, name: str, seconds: float) -> HeldLock:
        """Wait for holders that live, too."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.take(key, name, patience=max(0.0, min(deadline - time.monotonic(), 2 * self.lease)))
            except HeldError:
                if time.monotonic() >= deadline:
                    raise
            _pause(_POLL / 2)

    def _living(self, state: State, shared: bool, watch: _Watch) -> list[Entry]:
        """Those in the way that are not known to be dead; the dead are taken out of `state`, fenced."""
        living = []
        for kind in ("exclusive",) if shared else ("exclusive", "shared"):
            for entry in list(_entries(state, kind)):
                if not watch.is_dead(entry, max(self.lease, float(entry["lease"]))):
                    living.append(entry)
                    continue
                info("%s: taking over from %s, which is dead", self._client.place, _holder_of(entry))
                if kind == "exclusive" and entry["address"] != self._client.address:
                    self._client.fence(str(entry["address"]), FENCE_SECONDS)
                watch.dead.add(str(entry["id"]))
                _remove(state, str(entry["id"]))
        return living

    def _new_entry(self) -> Entry:
        return {
            **self._identity._asdict(),
            "id": token(),
            "since": time.time(),
            "address": self._client.address,
            "lease": self.lease,
            "beat": 0,
        }

    def _enter(self, key: str, entry: Entry, shared: bool, state: State, version: int | None) -> HeldLock:
        if shared:
            # Nobody else takes them out as long as there are only readers, and the record would grow.
            state["shared"] = [one for one in state["shared"] if not _identity_of(one).has_ended()] + [entry]
        else:
            state["exclusive"] = entry
        started = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            version = self._store(key, state, version)
        except ChangedObjectError:
            raise
        except BaseException:
            _LEFT.add(str(entry["id"]))
            raise
        held = HeldLock(self, key, entry, state, version)
        held.renewed = started
        with self._mutex:
            self._held[held.id] = held
            self._users.add(held.id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_all, name="rados-locks", daemon=True)
                self._thread.start()
        return held

    # The record.

    def _load(self, key: str) -> tuple[State, int | None]:
        state: State = {"exclusive": None, "shared": [], "last": None}
        try:
            data, version = self._objects.read_versioned(key, _LARGEST)
        except NoObjectError:
            return state, None
        with contextlib.suppress(ValueError):
            found = json.loads(data)
            if isinstance(found, dict):
                return state | found, version
        # Nobody knows who has it, so it is not free.
        raise RadosError(store=self._client.place, key=key, reason="the record of the lock can't be read")

    def peek(self, key: str) -> Mapping[str, Any]:
        return self._load(key)[0]

    def _store(self, key: str, state: State, version: int | None) -> int:
        change = Change().exclusive() if version is None else Change().at_version(version)
        change.write_full(json.dumps(state).encode())
        return self._objects.apply_versioned(key, change, force=True)

    def change(self, held: HeldLock, update: Callable[[State], object]) -> None:
        """Change the record while the lock is held; raises LostLockError if it is not any more."""
        with held.mutex:
            while not held.lost:
                state = json.loads(json.dumps(held.state))
                update(state)
                try:
                    held.version = self._store(held.key, state, held.version)
                    held.state = state
                    return
                except (ChangedObjectError, NoObjectError):
                    held.state, version = self._load(held.key)
                    held.lost = version is None or _find(held.state, held.id) is None
                    held.version = version or 0
                except FencedClientError:
                    held.lost = True
            raise LostLockError(store=self._client.place, key=held.key)

    # Renewing.

    def _renew_all(self) -> None:
        while not self._ended.wait(self.lease / 3):
            with self._mutex:
                held = list(self._held.values())
            for lock in held:
                self._renew(lock)

    def _renew(self, lock: HeldLock) -> None:
        def beat(state: State) -> None:
            entry = _find(state, lock.id)
            if entry is not None:
                entry["beat"] += 1

        started = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            self.change(lock, beat)
            lock.renewed = started
        except LostLockError as error:
            if self._forget(lock):
                warning("%s", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on, for all the other locks
            warning("%s is not renewed: %s", lock.key, error)

    def _forget(self, lock: HeldLock) -> bool:
        with self._mutex:
            return self._held.pop(lock.id, None) is not None

    def release(self, lock: HeldLock) -> None:
        """Never fails: what can't be released runs out."""
        with self._mutex:
            self._users.discard(lock.id)
        try:
            if not self._forget(lock):
                return
            if self._objects.unanswered:
                info("%s: left to who takes over: a change had no answer, and may arrive late", lock.key)
                _LEFT.add(lock.id)
            else:
                self.change(lock, lambda state: _remove(state, lock.id))
        except LostLockError:
            pass
        except BaseException as error:
            _LEFT.add(lock.id)
            if not isinstance(error, Error):
                raise
            warning("%s is not released: %s", lock.key, error)
        finally:
            lock.lost = True

    def close(self) -> bool:
        """Answers whether nothing uses the client any more; when the cluster does not answer, a renewal does."""
        self._ended.set()
        if self._thread is None:
            return True
        self._thread.join(_FAREWELL)
        return not self._thread.is_alive()


def _pause(most: float) -> None:
    """Half of that, or up to all of it: those who wait must not march in step."""
    time.sleep(most / 2 * (1 + os.urandom(1)[0] / 255))


class _Watch:
    """What one who waits has seen of the holders. `blink`: seconds without a look after which it begins anew."""

    def __init__(self, blink: float) -> None:
        self._blink = blink
        self._asked = self._looked = time.monotonic()
        self._seen: dict[str, tuple[int, float]] = {}
        self._alive: set[str] = set()
        self.dead: set[str] = set()

    def looked(self, asked: float) -> float:
        """A look at the record began then and ended now; answers with the seconds for which nothing was seen."""
        now = time.monotonic()
        unseen = now - self._looked
        self._asked, self._looked = asked, now
        if unseen <= self._blink:
            return 0.0
        self._seen = {key: (beat, now) for key, (beat, _) in self._seen.items()}
        return unseen

    def is_dead(self, entry: Entry, lease: float) -> bool:
        key, beat = str(entry["id"]), int(entry["beat"])
        identity = _identity_of(entry)
        if key in self.dead or identity.has_ended() or (identity == Identity.own() and key in _LEFT):
            return True
        before = self._seen.setdefault(key, (beat, self._looked))
        if before[0] != beat:
            self._alive.add(key)
            self._seen[key] = (beat, self._looked)
        # Between the end of the first look and the beginning of this one: what came in between is known.
        return before[0] == beat and self._asked - before[1] >= lease

    def knows(self, living: list[Entry]) -> bool:
        """Whether one of them certainly lives, so that waiting is pointless."""
        return any(str(entry["id"]) in self._alive for entry in living)


def _entries(state: State, kind: str) -> list[Entry]:
    if kind == "exclusive":
        return [state["exclusive"]] if state["exclusive"] else []
    return list(state["shared"])


def _find(state: State, identity: str) -> Entry | None:
    found = [entry for kind in ("exclusive", "shared") for entry in _entries(state, kind) if entry["id"] == identity]
    return found[0] if found else None


def _remove(state: State, identity: str) -> None:
    if state["exclusive"] and state["exclusive"]["id"] == identity:
        state["exclusive"] = None
    state["shared"] = [entry for entry in state["shared"] if entry["id"] != identity]

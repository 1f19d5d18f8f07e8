# SPDX-License-Identifier: BSD-2-Clause
"""Several processes over one RADOS, one operation at a time, in an order that a seed decides; some are killed.

Each actor is a thread that runs only when it is its turn: before each operation on the store, somebody is chosen. Time
is made up, too: it passes when all sleep. One that is not chosen for long is one that hangs, and may be taken over.

Things go wrong (`Mishaps`), also for those who go on: the pool is full, an operation has no answer in time, an object
can't be read, the cluster shuts a client out that did nothing wrong.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import count
from random import Random
from typing import Any

import pytest

from extstorage import (
    content,
    direct_reads,
    gate,
    intake,
    marks,
    rados_bodies,
    rados_contents,
    rados_layers,
    rados_locks,
    rados_pool,
    session,
    volume,
)
from extstorage.names import BLOCK
from extstorage.rados_locks import Identity, Locks
from extstorage.rados_pool import Objects
from extstorage.rados_store import RadosStore, create_store
from extstorage.specs import RadosSpec
from ganeti_plugin.errors import Error
from tests.datapath import fake_rados
from tests.datapath.fake_rados import Cluster, Dying
from tests.datapath.tap import Killed, Reaper

SPEC = RadosSpec("pool", lease=15.0)

#: Made-up seconds of one operation.
_STEP = 0.002

#: How often a process hangs, until others may have taken its locks over, and how often only for as long as their work
#: takes: so that whole commands come between any two operations of another.
_HANGS = 0.004
_STALLS = 0.02

#: Real seconds.
_MOMENT = 0.0005

_pids = count(1)


class Mishaps:
    """What goes wrong, as chance decides; nothing until there are `rates`."""

    def __init__(self, chance: Random, cluster: Cluster) -> None:
        self._chance = chance
        self._cluster = cluster
        self.rates: dict[str, float] = {}
        self.count = 0

    def __call__(self, client: fake_rados.Rados, what: str) -> None:
        for kind, rate in self.rates.items():
            if self._chance.random() < rate:
                self._let(kind, client, what)

    def _let(self, kind: str, client: fake_rados.Rados, what: str) -> None:
        if kind == "full" and what == "change":
            self._raise(fake_rados.Error(errno.ENOSPC))
        if kind == "unread" and what == "read":
            self._raise(fake_rados.Error(errno.EIO))
        if kind == "unanswered" and client.gives_up:
            if what == "read":
                self._raise(fake_rados.Error(errno.ETIMEDOUT))
            self._raise(fake_rados.UnansweredError(self._chance.choice(("now", "later", "later", "never"))))
        if kind == "shut out":
            self._cluster.shut_out(client.address)
            self._raise(fake_rados.Error(errno.ESHUTDOWN))

    def _raise(self, error: fake_rados.Error) -> None:
        self.count += 1
        raise error


class Actor:
    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self.name = name
        self.turn = threading.Semaphore(0)
        self.wakes = 0.0
        self.awaits: object = None
        self.fate: BaseException | None = None
        self.ended = False
        self.doomed = -1
        self._work = work

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.fate = error
        self.ended = True


class Processes:
    """What all of them share: the cluster, the clock, and whose turn it is. Use `patched` to have it used."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.cluster = Cluster()
        self.cluster.turn = self._turn
        self.mishaps = Mishaps(self.chance, self.cluster)
        self.cluster.mishap = self._mishap
        self.now = 1000.0
        self.reaper = Reaper()
        self._actors: list[Actor] = []
        self._own = threading.local()
        self._dead: set[int] = set()
        self._stores: list[RadosStore] = []
        self._renewed: dict[str, float] = {}
        self._haste = self.chance.choice((0.3, 0.7, 0.95))
        self._over = threading.Event()

    def patched(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(rados_pool, "rados", _Module(self.cluster))
        patch.setattr(Objects, "parallel", lambda _self, work, arguments: map(work, arguments))
        patch.setattr(Locks, "_renew_all", lambda _self: None)
        patch.setattr(Identity, "has_ended", lambda one: one.pid in self._dead)
        patch.setattr(content, "ThreadPoolExecutor", _AtOnce)
        # The same seed does the same.
        patch.setattr(os, "urandom", Random(self.chance.random()).randbytes)
        patch.setattr(marks, "random", Random(self.chance.random()))
        # A table has all content blocks, else most of what is done is to look into empty ones.
        patch.setattr(rados_contents, "_SHARDS", 1)
        # Both cost more than everything else here.
        patch.setattr(marks, "_BITS", 16)
        patch.setattr(Identity, "own", lambda: Identity("nobody", "", 0, 0))
        patch.setattr(rados_locks, "time", self)
        patch.setattr(session, "time", self)
        # Maps of a few bytes already have bodies elsewhere, in parts.
        patch.setattr(rados_bodies, "INLINE", 0)
        patch.setattr(rados_bodies, "PART", 40)
        # Imports of three blocks already come in batches, with checkpoints between.
        patch.setattr(intake, "BATCH", self.chance.choice((1, 2)))
        patch.setattr(intake, "AHEAD", 1)
        patch.setattr(intake, "CHECKPOINT", self.chance.choice((1, 2)) * BLOCK)

    def share_a_process(self, patch: pytest.MonkeyPatch) -> None:
        """Actors may be threads of one process: who waits for another's lock lets others go on."""
        for module in (direct_reads, gate, rados_layers, rados_locks, session, volume):
            patch.setattr(module, "threading", _Threading(self))

    def wait(self, what: object) -> None:
        actor: Actor = self._own.actor
        actor.awaits = what
        actor.wakes = math.inf
        self._switch(actor)

    def pause(self) -> None:
        """A thread may be interrupted here."""
        actor: Actor | None = getattr(self._own, "actor", None)
        if actor is not None and self.chance.random() > self._haste:
            self._switch(actor)

    def wake(self, what: object) -> None:
        """Those that wait for it."""
        for actor in self._actors:
            if actor.awaits is what:
                actor.awaits = None
                actor.wakes = self.now

    def open(self, node: str = "node", *, deadline: float = 0.0, beside: RadosStore | None = None) -> RadosStore:
        """As one more process, or as one that has it open already."""
        if not self._stores:
            create_store(SPEC).close()
        identity = beside._identity if beside else Identity(node, "boot", next(_pids), 1)
        self._stores.append(RadosStore(SPEC, deadline, identity))
        return self._stores[-1]

    def kill(self, store: RadosStore) -> None:
        for one in self._stores:
            if one._identity == store._identity:
                self.cluster.kill(one._client.address)
        # From another node nobody sees it.
        if store._identity.node == "node":
            self._dead.add(store._identity.pid)

    def _store_at(self, address: str) -> RadosStore | None:
        """None while it connects."""
        return next((store for store in self._stores if store._client.address == address), None)

    # The clock, as the module `time`.

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    CLOCK_BOOTTIME = 7

    def clock_gettime(self, clock: int) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        actor: Actor | None = getattr(self._own, "actor", None)
        if actor is None:
            self.now += seconds
            for store in self._stores:
                self._renew(store)
            # To threads that nobody conducts.
            time.sleep(_MOMENT)
            return
        actor.wakes = self.now + seconds
        self._switch(actor)

    # Turns.

    def run(self, works: Iterable[tuple[str, Callable[[], None]]], deaths: Iterable[str] = ()) -> list[Actor]:
        """Until all have ended. Those in `deaths` are killed at an operation that chance decides."""
        self._actors = [Actor(name, work) for name, work in works]
        for actor in self._actors:
            if actor.name in deaths:
                actor.doomed = self.chance.randrange(400)
        threads = [threading.Thread(target=self._live, args=(actor,), daemon=True) for actor in self._actors]
        for thread in threads:
            thread.start()
        self._actors[0].turn.release()
        assert self._over.wait(60), "the actors wait for each other"
        for thread in threads:
            thread.join(10)
        self.cluster.let_arrive()
        return self._actors

    def _live(self, actor: Actor) -> None:
        self._own.actor = actor
        actor.turn.acquire()
        actor.run()
        following = self._following()
        if following is None:
            self._over.set()
        else:
            following.turn.release()

    def _turn(self, address: str) -> None:
        actor: Actor | None = getattr(self._own, "actor", None)
        if actor is None:
            self.reaper.allow()
            return
        self.now += _STEP
        if self.chance.random() < _HANGS:
            actor.wakes = self.now + self.chance.uniform(0, 4 * SPEC.lease)
            self._switch(actor)
        elif self.chance.random() < _STALLS:
            actor.wakes = self.now + self.chance.uniform(0, SPEC.lease / 3)
            self._switch(actor)
        elif self.chance.random() > self._haste:
            self._switch(actor)
        if self.chance.random() < 0.01:
            self.cluster.let_arrive()
        actor.doomed -= 1
        if actor.doomed == -1:
            self.cluster.kill(address)
            store = self._store_at(address)
            if store is not None:
                self.kill(store)
            raise Dying if self.chance.random() < 0.5 else Killed
        store = self._store_at(address)
        if store is not None:
            self._renew(store)

    def _mishap(self, client: fake_rados.Rados, what: str) -> None:
        if getattr(self._own, "actor", None) is not None:
            self.mishaps(client, what)

    def _switch(self, actor: Actor) -> None:
        following = self._following()
        assert following is not None
        if following is not actor:
            following.turn.release()
            actor.turn.acquire()

    def _following(self) -> Actor | None:
        living = [actor for actor in self._actors if not actor.ended]
        if not living:
            return None
        wakes = min(actor.wakes for actor in living)
        assert wakes < math.inf, "the actors wait for each other"
        self.now = max(self.now, wakes)
        return self.chance.choice([actor for actor in living if actor.wakes <= self.now])

    def _renew(self, store: RadosStore) -> None:
        """What a thread of `Locks` does."""
        address = store._client.address
        if self.now - self._renewed.get(address, 0.0) < SPEC.lease / 3 or self.cluster.is_dead(address):
            return
        self._renewed[address] = self.now
        for held in list(store._locks._held.values()):
            if not held.mutex.locked():
                store._locks._renew(held)


class _Module:
    """What rados_pool.py takes for the module `rados`."""

    def __init__(self, cluster: Cluster) -> None:
        self.Rados = cluster.connect

    def __getattr__(self, name: str) -> Any:
        return getattr(fake_rados, name)


class _Threading:
    """What some modules take for `threading`."""

    def __init__(self, processes: Processes) -> None:
        self.Lock = self.RLock = lambda: _Mutex(processes)
        self.Condition = _Condition
        self.Event, self.Thread = threading.Event, threading.Thread


class _Mutex:
    """A lock, which may be taken again by who has it."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._owner = self._depth = 0

    def acquire(self, blocking: bool = True) -> bool:
        mine = threading.get_ident()
        while self._depth and self._owner != mine:
            if not blocking:
                return False
            self.processes.wait(self)
        self._owner = mine
        self._depth += 1
        return True

    def locked(self) -> bool:
        return self._depth > 0

    def release(self) -> None:
        self._depth -= 1
        self.processes.wake(self)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_exc: object) -> None:
        self.release()
        self.processes.pause()


class _Condition:
    def __init__(self, lock: _Mutex) -> None:
        self._lock = lock
        self._processes = lock.processes

    def wait(self) -> None:
        self._lock.release()
        self._processes.wait(self)
        self._lock.acquire()

    def wait_for(self, predicate: Callable[[], bool], _timeout: float) -> bool:
        while not predicate():
            self.wait()
        return True

    def notify_all(self) -> None:
        self._processes.wake(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_exc: object) -> None:
        self._lock.release()


class _AtOnce:
    """An executor without threads."""

    def __init__(self, *_arguments: object) -> None:
        """There is nothing to limit."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except (Error, OSError) as error:
            future.set_exception(error)
        return future

    def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Nothing runs."""

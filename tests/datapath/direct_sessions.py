# SPDX-License-Identifier: BSD-2-Clause
"""Sessions whose plain blocks are read past them, as native/archipelago-plugin.c does it, from a cluster in memory.

Others get their turn wherever a thread may be interrupted to the harm of the protocol: between the look-up and the
read, before and after a block is allowed, before and after it is taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from extstorage.direct_reads import Counts, DirectReads
from extstorage.names import BLOCK
from extstorage.rados_store import RadosStore
from extstorage.session import Session
from extstorage.store import Store
from tests.datapath import fake_rados
from tests.datapath.actors import Processes
from tests.datapath.fake_rados import Cluster
from tests.datapath.tap import Killed

#: Few, so that blocks take each other's place.
SLOTS = 2


class Slot(NamedTuple):
    generation: int
    block: int
    name: str


class Plugin:
    """What one process has of the plugin: `read` is `read_directly`, the others have their names without `direct_`."""

    def __init__(self, store: RadosStore, cluster: Cluster, clock: Callable[[], float]) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        #: A client of its own, which nobody shuts out.
        self._client = fake_rados.Rados(cluster, gives_up=False)
        self._generation = 1
        self._deadline = 0
        self._reads = self._read_bytes = 0
        self.slots: dict[int, Slot] = {}

    def connect(self) -> int:
        """Reads don't wait for it here: it would come at a time of its own."""
        return 0

    def trust(self, until: int) -> None:
        self._deadline = until

    def begin(self) -> int:
        self._generation += 1
        return self._generation

    def allow(self, begun: int, index: int, name: str) -> None:
        self._turn()
        if begun == self._generation:
            self.slots[index % SLOTS] = Slot(begun, index, name)
        self._turn()

    def forget(self, index: int) -> None:
        self._turn()
        self._forget(index)
        self._turn()

    def _forget(self, index: int) -> None:
        slot = self.slots.get(index % SLOTS)
        if slot is not None and slot.block == index:
            del self.slots[index % SLOTS]

    def count(self) -> Counts:
        return Counts(self._reads, self._read_bytes)

    def allowed(self, index: int) -> str:
        """The object that the block may be read as; "" if Python is to be asked."""
        slot = self.slots.get(index % SLOTS)
        if self._clock() * 1e9 >= self._deadline:
            return ""
        return slot.name if slot is not None and slot[:2] == (self._generation, index) else ""

    def read(self, buffer: memoryview, offset: int) -> bool:
        index, inside = divmod(offset, BLOCK)
        name = self.allowed(index)
        if inside + len(buffer) > BLOCK or not name:
            return False
        data = self._look(name, inside, len(buffer))
        if data is None:
            self._forget(index)
            return False
        buffer[:] = data.ljust(len(buffer), b"\0")
        self._reads += 1
        self._read_bytes += len(buffer)
        return True

    def _look(self, name: str, offset: int, length: int) -> bytes | None:
        self._turn()
        try:
            self._cluster.mishap(self._client, "read")
            return bytes(self._cluster.look(name)[0].data[offset : offset + length])
        except fake_rados.Error:
            return None

    def _turn(self) -> None:
        """It is the process's, and dies with it."""
        address = self._store._client.address
        self._cluster.turn(address)
        if self._cluster.is_dead(address):
            raise Killed


class DirectSession(Session):
    """A server of one volume, seen from its clients. Its `poll` comes often enough for direct reads never to pause."""

    def __init__(self, store: RadosStore, name: str, run: Path | None, plugin: Plugin) -> None:
        self.plugin = plugin
        super().__init__(store, name, run, DirectReads(plugin))

    def readinto(self, buffer: memoryview, offset: int) -> None:
        self._extend_direct()
        if not self.plugin.read(buffer, offset):
            super().readinto(buffer, offset)


class DirectSessions:
    """To be called as `Session` is, in its place."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._plugins: list[Plugin] = []

    def __call__(self, store: Store, name: str, run: Path | None = None) -> DirectSession:
        assert isinstance(store, RadosStore)
        plugin = Plugin(store, self._processes.cluster, self._processes.monotonic)
        self._plugins.append(plugin)
        return DirectSession(store, name, run, plugin)

    @property
    def reads(self) -> int:
        """Those that no session saw."""
        return sum(plugin.count().reads for plugin in self._plugins)

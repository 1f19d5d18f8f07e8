# SPDX-License-Identifier: BSD-2-Clause
"""A RADOS in memory: what rados_pool.py uses of python3-rados, for tests that kill, delay and interleave clients.

Each operation first asks the cluster's `turn`, which may let others go first, or kill the client. Of a client that is
killed, an operation may still be under way: it arrives at any time later, unless the client is shut out by then. So may
one of a client that gave up waiting: then `mishap` says so. What one client does to one object happens in order.

There are no short reads to be had: RADOS answers with all that the object has, or with an error.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple, Self

from tests.datapath.tap import Killed

LIBRADOS_CREATE_EXCLUSIVE, LIBRADOS_CREATE_IDEMPOTENT = 1, 0

#: Which operations get into a full pool.
_FORCE = 64


class Error(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


class ObjectNotFound(Error):
    def __init__(self) -> None:
        super().__init__(errno.ENOENT)


class UnansweredError(Error):
    """The change is made, now or later or never, and nobody says which."""

    def __init__(self, when: str) -> None:
        super().__init__(errno.ETIMEDOUT)
        self.when = when


class Thing(NamedTuple):
    """An object."""

    data: bytearray
    attributes: dict[str, bytes]
    table: dict[str, bytes]

    def copy(self) -> Thing:
        return Thing(bytearray(self.data), dict(self.attributes), dict(self.table))


Step = Callable[[Thing], None]


class WriteOp:
    def __init__(self) -> None:
        self.exclusive = self.removes = False
        self.version: int | None = None
        self.steps: list[Step] = []

    def create(self) -> Self:
        return self

    def release(self) -> None:
        """Nothing is held."""

    def new(self, flag: int) -> None:
        self.exclusive = flag == LIBRADOS_CREATE_EXCLUSIVE

    def assert_version(self, version: int) -> None:
        self.version = version

    def remove(self) -> None:
        self.removes = True

    def write(self, data: bytes, offset: int) -> None:
        def step(thing: Thing) -> None:
            _reach(thing, offset)
            thing.data[offset : offset + len(data)] = data

        self.steps.append(step)

    def write_full(self, data: bytes) -> None:
        def step(thing: Thing) -> None:
            thing.data[:] = data

        self.steps.append(step)

    def truncate(self, size: int) -> None:
        def step(thing: Thing) -> None:
            _reach(thing, size)
            del thing.data[size:]

        self.steps.append(step)

    def zero(self, offset: int, length: int) -> None:
        def step(thing: Thing) -> None:
            end = min(offset + length, len(thing.data))
            thing.data[offset:end] = bytes(max(0, end - offset))

        self.steps.append(step)

    def set_xattr(self, name: str, value: bytes) -> None:
        self.steps.append(lambda thing: thing.attributes.update({name: value}))

    def omap_cmp(self, entry: str, value: str) -> None:
        def step(thing: Thing) -> None:
            if thing.table.get(entry, b"") != value.encode():
                raise Error(errno.ECANCELED)

        self.steps.append(step)


def _reach(thing: Thing, size: int) -> None:
    thing.data.extend(bytes(max(0, size - len(thing.data))))


class ReadOpCtx:
    def __init__(self) -> None:
        self.asked: list[tuple[Callable[[dict[str, bytes]], list[tuple[str, bytes]]], list[tuple[str, bytes]]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Nothing is held."""


class Cluster:
    """All pools and namespaces are one."""

    def __init__(self) -> None:
        self.things: dict[str, tuple[Thing, int]] = {}
        self.turn: Callable[[str], None] = lambda _address: None
        #: Given who does something, and what: may raise an `Error`, an `UnansweredError` only instead of a change.
        self.mishap: Callable[[Rados, str], None] = lambda _client, _what: None
        self.full = False
        self._versions = count(1)
        self._mutex = threading.RLock()
        self._shut_out: set[str] = set()
        self._dead: set[str] = set()
        #: What arrived after its sender's death.
        self.late: set[str] = set()
        self._late: list[tuple[str, str, WriteOp]] = []

    def connect(self, *, conf: Mapping[str, str], **_more: object) -> Rados:
        """What the program takes for the constructor of `rados.Rados`."""
        return Rados(self, gives_up=float(conf["rados_osd_op_timeout"]) > 0)

    def kill(self, address: str) -> None:
        self._dead.add(address)

    def is_dead(self, address: str) -> bool:
        return address in self._dead

    def shut_out(self, address: str) -> None:
        with self._mutex:
            self._shut_out.add(address)
            self._late = [one for one in self._late if one[0] != address]

    def arrives_later(self, address: str, key: str, op: WriteOp) -> None:
        with self._mutex:
            self._late.append((address, key, op))

    def let_arrive(self) -> None:
        """What dead clients had sent."""
        with self._mutex:
            late, self._late = self._late, []
            for _, key, op in late:
                try:
                    self.change(key, op, force=True)
                except Error:
                    continue
                self.late.add(key)

    def settle(self, address: str, key: str) -> None:
        """What a client had sent to an object before arrives first."""
        with self._mutex:
            mine = [one for one in self._late if one[:2] == (address, key)]
            self._late = [one for one in self._late if one[:2] != (address, key)]
            for _, _, op in mine:
                with contextlib.suppress(Error):
                    self.change(key, op, force=True)

    def check(self, address: str) -> None:
        if address in self._dead:
            raise Killed
        if address in self._shut_out:
            raise Error(errno.ESHUTDOWN)

    def look(self, key: str) -> tuple[Thing, int]:
        with self._mutex:
            if key not in self.things:
                raise ObjectNotFound
            return self.things[key]

    def change(self, key: str, op: WriteOp, *, force: bool) -> int:
        with self._mutex:
            found, version = self.things.get(key, (None, 0))
            if found is not None and op.exclusive:
                raise Error(errno.EEXIST)
            if op.version is not None or op.removes:
                if found is None:
                    raise ObjectNotFound
                if op.version not in (None, version):
                    raise Error(errno.ERANGE)
            if self.full and not force:
                raise Error(errno.ENOSPC)
            thing = found.copy() if found is not None else Thing(bytearray(), {}, {})
            for step in op.steps:
                step(thing)
            new = next(self._versions)
            if op.removes:
                del self.things[key]
            else:
                self.things[key] = thing, new
            return new


_addresses = count(1)


class Rados:
    def __init__(self, cluster: Cluster, *, gives_up: bool) -> None:
        self.cluster = cluster
        #: Whether it waits for answers for a limited time.
        self.gives_up = gives_up
        self.address = f"client{next(_addresses)}"

    def connect(self, timeout: float) -> None:
        """It always is there."""

    def shutdown(self) -> None:
        """Nothing is held."""

    def mon_command(self, *_arguments: object) -> tuple[int, bytes, str]:
        """What is free."""
        return 0, b'{"pools": [{"name": "pool", "stats": {"stored": 0, "max_avail": 1099511627776}}]}', ""

    def open_ioctx(self, _pool: str) -> Ioctx:
        return Ioctx(self)

    def get_addrs(self) -> str:
        return self.address

    def blocklist_add(self, address: str, _seconds: int) -> None:
        self.cluster.turn(self.address)
        self.cluster.check(self.address)
        try:
            self.cluster.mishap(self, "fence")
        except UnansweredError as error:
            if error.when != "never":
                self.cluster.shut_out(address)
            raise
        self.cluster.shut_out(address)

    def wait_for_latest_osdmap(self) -> None:
        """It is known at once."""


class Ioctx:
    def __init__(self, client: Rados) -> None:
        self._client = client
        self._cluster = client.cluster
        self._version = 0

    def close(self) -> None:
        """Nothing is held."""

    def set_namespace(self, _name: str) -> None:
        """There is one."""

    def set_osdmap_full_try(self) -> None:
        """A full pool is an error."""

    def _look(self, key: str) -> Thing:
        self._cluster.turn(self._client.address)
        self._cluster.check(self._client.address)
        self._cluster.settle(self._client.address, key)
        self._cluster.mishap(self._client, "read")
        thing, self._version = self._cluster.look(key)
        return thing

    def read(self, key: str, length: int, offset: int) -> bytes:
        return bytes(self._look(key).data[offset : offset + length])

    def stat(self, key: str) -> tuple[int, int]:
        return len(self._look(key).data), 0

    def get_xattr(self, key: str, name: str) -> bytes:
        found = self._look(key).attributes.get(name)
        if found is None:
            raise Error(errno.ENODATA)
        return found

    def get_last_version(self) -> int:
        return self._version

    def write(self, key: str, data: bytes, offset: int) -> None:
        op = WriteOp()
        op.write(data, offset)
        self.operate_write_op(op, key)

    def operate_write_op(self, op: WriteOp, key: str, flags: int = 0) -> None:
        try:
            self._cluster.turn(self._client.address)
            self._cluster.check(self._client.address)
        except Dying:
            self._cluster.arrives_later(self._client.address, key, op)
            raise
        self._cluster.settle(self._client.address, key)
        try:
            self._cluster.mishap(self._client, "force" if flags & _FORCE else "change")
        except UnansweredError as error:
            if error.when == "later":
                self._cluster.arrives_later(self._client.address, key, op)
            elif error.when == "now":
                with contextlib.suppress(Error):
                    self._cluster.change(key, op, force=True)
            raise
        self._version = self._cluster.change(key, op, force=bool(flags & _FORCE))

    def list_objects(self) -> Iterator[Any]:
        class Item(NamedTuple):
            key: str

        return (Item(key) for key in list(self._cluster.things))

    def set_omap(self, op: WriteOp, keys: tuple[str, ...], values: tuple[bytes, ...]) -> None:
        pairs = dict(zip(keys, values, strict=True))
        op.steps.append(lambda thing: thing.table.update(pairs))

    def remove_omap_keys(self, op: WriteOp, keys: tuple[str, ...]) -> None:
        def step(thing: Thing) -> None:
            for key in keys:
                thing.table.pop(key, None)

        op.steps.append(step)

    def get_omap_vals_by_keys(self, op: ReadOpCtx, keys: tuple[str, ...]) -> tuple[list[tuple[str, bytes]], int]:
        return self._ask(op, lambda table: [(key, table[key]) for key in keys if key in table])

    def get_omap_vals(self, op: ReadOpCtx, after: str, _prefix: str, most: int) -> tuple[list[tuple[str, bytes]], int]:
        return self._ask(op, lambda table: sorted(pair for pair in table.items() if pair[0] > after)[:most])

    @staticmethod
    def _ask(
        op: ReadOpCtx, question: Callable[[dict[str, bytes]], list[tuple[str, bytes]]]
    ) -> tuple[list[tuple[str, bytes]], int]:
        found: list[tuple[str, bytes]] = []
        op.asked.append((question, found))
        return found, 0

    def operate_read_op(self, op: ReadOpCtx, key: str) -> None:
        table = self._look(key).table
        for question, found in op.asked:
            found.extend(question(table))


class Dying(Killed):
    """The client dies, and what it has just sent arrives later."""

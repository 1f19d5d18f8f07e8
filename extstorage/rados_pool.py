# SPDX-License-Identifier: BSD-2-Clause
"""Objects in one namespace of a RADOS pool: the only module that knows python3-rados, and what its numbers mean.

Synchronous calls from many threads, and no asynchronous ones: measured with 16.2, a synchronous read of 4 KiB takes
150 us and 32 threads make 37000 a second, while a callback into Python costs 70 us more and ends at 13000.

A full pool is an error here. (librados would rather let every writer wait in silence; a guest is better off with
ENOSPC, which QEMU answers by pausing it.) What makes space, and what locks, passes all the same: `force`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

import rados

from extstorage.errors import FencedClientError, FullStoreError, UnreachableStoreError
from extstorage.names import token
from extstorage.rados_errors import ChangedObjectError, NoAttributeError, NoObjectError, RadosError
from extstorage.specs import CONNECT_TIMEOUT, RadosSpec
from extstorage.store import Space

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

#: LIBRADOS_OPERATION_FULL_TRY and _FULL_FORCE of librados.h, which 16.2 does not name in Python.
_FORCE = 64 | 128

#: Threads for work on many objects, what each takes at a time, and entries of a table that are read at a time.
_WORKERS = 16
_BATCH = 16
_OMAP_BATCH = 1000

T = TypeVar("T")
R = TypeVar("R")


#: Bytes that are read at once.
PIECE = 1 << 20


class Change:
    """What happens to one object, all of it or nothing."""

    def __init__(self) -> None:
        self.op = rados.WriteOp().create()

    def exclusive(self) -> Self:
        """The object must not be there yet."""
        self.op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
        return self

    def touch(self) -> Self:
        """Have the object be there."""
        self.op.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
        return self

    def at_version(self, version: int) -> Self:
        """The object must be there, unchanged since `read_versioned` or `version` told its version."""
        self.op.assert_version(version)
        return self

    def write(self, offset: int, data: bytes | memoryview) -> Self:
        """The object grows as needed; the rest of it stays."""
        self.op.write(bytes(data), offset)
        return self

    def write_full(self, data: bytes) -> Self:
        """This is the whole object afterwards; its attributes stay."""
        self.op.write_full(data)
        return self

    def truncate(self, size: int) -> Self:
        self.op.truncate(size)
        return self

    def remove(self) -> Self:
        self.op.remove()
        return self

    def set_attribute(self, name: str, value: bytes) -> Self:
        """An extended attribute, in the same operation as the data."""
        self.op.set_xattr(name, value)
        return self


class Client:
    """One connection to a cluster: what the cluster can fence.

    `deadline`: seconds for one operation; 0 waits as long as the cluster needs, as a disk does.
    """

    def __init__(self, place: RadosSpec, deadline: float) -> None:
        self.place = place
        settings = {
            "client_mount_timeout": f"{CONNECT_TIMEOUT}",
            "rados_mon_op_timeout": f"{CONNECT_TIMEOUT}",
            "rados_osd_op_timeout": f"{deadline:g}",
        }
        if place.keyring:
            settings["keyring"] = place.keyring
        try:
            self._cluster = rados.Rados(conffile=str(place.conf), rados_id=place.user, conf=settings)
        except rados.Error as error:
            raise _unreachable(place, f"{place.conf} can't be read ({_reason(error)})") from None
        try:
            self._cluster.connect(timeout=CONNECT_TIMEOUT)
            self._cluster.open_ioctx(place.pool).close()
        except rados.Error as error:
            self._cluster.shutdown()
            raise _unreachable(place, _why_not(place, error)) from None
        self.objects = Objects(self._cluster, place)

    @property
    def address(self) -> str:
        """What `fence` takes."""
        return str(self._cluster.get_addrs())

    def fence(self, address: str, seconds: int) -> None:
        """When this returns, no operation that another client still has under way can change what this one reads.

        An OSD that has not heard of it learns of it from our next operation, before it looks at that operation.
        """
        try:
            self._cluster.blocklist_add(address, seconds)
            self._cluster.wait_for_latest_osdmap()
        except rados.Error as error:
            reason = (
                f"client.{self.place.user} could not fence {address} ({_reason(error)}): does it lack 'profile rbd'?"
            )
            raise _unreachable(self.place, reason) from None

    def space(self) -> Space:
        """Of the pool: what its quota or its OSDs leave, in bytes as a client writes them."""
        stats = self._pool_stats()
        if stats is None:
            whole = self._cluster.get_cluster_stats()
            return Space(int(whole["kb"]) << 10, int(whole["kb_avail"]) << 10)
        stored, free = int(stats.get("stored", 0)), int(stats.get("max_avail", 0))
        quota = int(stats.get("quota_bytes", 0))
        if quota:
            free = max(0, min(free, quota - stored))
        return Space(stored + free, free)

    def _pool_stats(self) -> Mapping[str, Any] | None:
        command = json.dumps({"prefix": "df", "detail": "detail", "format": "json"})
        try:
            status, output, message = self._cluster.mon_command(command, b"", CONNECT_TIMEOUT)
        except rados.Error as error:
            raise _unreachable(self.place, _reason(error)) from None
        if status:
            raise _unreachable(self.place, str(message))
        pools = json.loads(output).get("pools", [])
        return next((pool["stats"] for pool in pools if pool["name"] == self.place.pool), None)

    def close(self) -> None:
        self.objects.close()
        self._cluster.shutdown()


class Objects:
    """The objects of the place. Thread-safe.

    Whatever fails raises one of `rados_errors.py`, and FullStoreError, FencedClientError or UnreachableStoreError.
    """

    def __init__(self, cluster: rados.Rados, place: RadosSpec) -> None:
        self._cluster = cluster
        self._place = place
        self._io = self._open()
        self._spare = [self._open()]
        self._lock = threading.Lock()
        self._workers: ThreadPoolExecutor | None = None
        self._working: set[threading.Thread] = set()
        self._swapped: bool | None = None
        #: The cluster has shut this client out, for good.
        self.fenced = False
        #: A change had no answer in time. It may still arrive, until this client is shut out.
        self.unanswered = False

    def _open(self) -> rados.Ioctx:
        io = self._cluster.open_ioctx(self._place.pool)
        io.set_namespace(self._place.namespace)
        io.set_osdmap_full_try()
        return io

    def close(self) -> None:
        with self._lock:
            if self._workers is not None:
                self._workers.shutdown()
            for io in (*self._spare, self._io):
                io.close()
            self._spare.clear()

    def parallel(self, work: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
        """Call for each, several at a time, in order. Arguments are taken as needed: there may be millions."""
        if threading.current_thread() in self._working:
            # A worker that waits for others could wait for ever.
            yield from map(work, arguments)
            return
        with self._lock:
            if self._workers is None:
                # Here, for it takes as long to import as a clone takes.
                from concurrent.futures import ThreadPoolExecutor

                self._workers = ThreadPoolExecutor(_WORKERS, "rados", self._enter_worker)
        running: deque[Future[list[R]]] = deque()
        try:
            for some in _batches(arguments):
                running.append(self._workers.submit(_each, work, some))
                if len(running) > 2 * _WORKERS:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def _enter_worker(self) -> None:
        self._working.add(threading.current_thread())

    def _failed(self, error: rados.Error, key: str) -> Exception:
        number = _number_of(error)
        facts = {"store": str(self._place), "key": key}
        if number == errno.ENOENT:
            return NoObjectError(**facts)
        if number == errno.ENODATA:
            return NoAttributeError(**facts)
        if number in (errno.EEXIST, errno.ERANGE, errno.EOVERFLOW, errno.ECANCELED):
            return ChangedObjectError(**facts)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return FullStoreError(**facts)
        if number == errno.ESHUTDOWN:
            self.fenced = True
            return FencedClientError(**facts)
        if number == errno.ETIMEDOUT:
            reason = "no answer in time; whether the last change was made is not known"
            return _unreachable(self._place, reason)
        if number in (errno.EPERM, errno.EACCES):
            return _unreachable(self._place, f"client.{self._place.user} lacks rights in the pool {self._place.pool!r}")
        return RadosError(**facts, reason=_reason(error))

    def _change_failed(self, error: rados.Error, key: str) -> Exception:
        self.unanswered |= _number_of(error) == errno.ETIMEDOUT
        return self._failed(error, key)

    def read(self, key: str, length: int, offset: int = 0) -> bytes:
        """May be short at the end of the object."""
        try:
            data: bytes = self._io.read(key, length, offset)
        except rados.Error as error:
            raise self._failed(error, key) from None
        return data

    def readinto(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill the buffer; behind the object's end there are zeros.

        In pieces, of which each is copied while it is still in the processor's cache, and takes little memory.
        """
        at, length = 0, len(buffer)
        while at < length:
            wanted = min(PIECE, length - at)
            data = self.read(key, wanted, offset + at)
            end = at + len(data)
            buffer[at:end] = data
            if len(data) < wanted:
                buffer[end:] = bytes(length - end)
                return
            at = end

    def write(self, key: str, offset: int, data: memoryview) -> None:
        """Into an object that may be there or not. The shortest way, for what needs no condition."""
        try:
            self._io.write(key, bytes(data), offset)
        except rados.Error as error:
            raise self._change_failed(error, key) from None

    def apply(self, key: str, change: Change, *, force: bool = False) -> None:
        """Raises ChangedObjectError when a condition of the change does not hold."""
        try:
            self._io.operate_write_op(change.op, key, flags=_FORCE if force else 0)
        except rados.Error as error:
            raise self._change_failed(error, key) from None
        finally:
            change.op.release()

    def remove(self, key: str) -> bool:
        """Answers whether it was there."""
        try:
            self.apply(key, Change().remove(), force=True)
        except NoObjectError:
            return False
        return True

    def attribute(self, key: str, name: str) -> bytes:
        """Raises NoObjectError and NoAttributeError."""
        try:
            value: bytes = self._io.get_xattr(key, name)
        except rados.Error as error:
            raise self._failed(error, key) from None
        return value

    def size(self, key: str) -> int:
        """In bytes. Raises NoObjectError."""
        try:
            return int(self._io.stat(key)[0])
        except rados.Error as error:
            raise self._failed(error, key) from None

    def keys(self) -> Iterator[str]:
        """Every object of the namespace: a walk over the whole pool.

        An error on the way is the end of it, for python3-rados does not tell. So what is not met may be there.
        """
        try:
            for item in self._io.list_objects():
                yield item.key
        except rados.Error as error:
            raise self._failed(error, "*") from None

    def zero(self, change: Change, offset: int, length: int) -> None:
        """Have a range read as zeros, as a part of the change.

        WriteOp.zero of python3-rados hands its two numbers over in the wrong order (16.2 to 19.2 do,
        https://tracker.ceph.com/issues/67471), and an OSD before 17 dies of a length of zero. So which kind is
        installed here is tried out, with numbers that harm in neither order.
        """
        assert length > 0
        numbers = (length, offset) if self._zero_is_swapped() else (offset, length)
        change.op.zero(*numbers)

    def _zero_is_swapped(self) -> bool:
        if self._swapped is None:
            key = f"probe.{token()}"
            change = Change().write_full(b"1234")
            change.op.zero(1, 2)
            self.apply(key, change, force=True)
            self._swapped = self.read(key, 4) != b"1\0\0" + b"4"
            self.remove(key)
        return self._swapped

    # With versions. A context remembers the version of its last object, so each call has one for itself.

    def _versioned(self, call: Callable[[rados.Ioctx], R], key: str) -> tuple[R, int]:
        with self._lock:
            io = self._spare.pop() if self._spare else self._open()
        try:
            result = call(io)
            return result, int(io.get_last_version())
        except rados.Error as error:
            raise self._failed(error, key) from None
        finally:
            with self._lock:
                self._spare.append(io)

    def read_versioned(self, key: str, length: int) -> tuple[bytes, int]:
        """From the beginning, with what `Change.at_version` takes. Raises NoObjectError."""

        def call(io: rados.Ioctx) -> bytes:
            data: bytes = io.read(key, length, 0)
            return data

        return self._versioned(call, key)

    def version(self, key: str) -> int:
        """Differs after each change. Raises NoObjectError."""
        return self._versioned(lambda io: io.stat(key), key)[1]

    def apply_versioned(self, key: str, change: Change, *, force: bool = False) -> int:
        """The same as `apply`; answers with the object's new version.

        For records of locks: late, such a change finds another version, or a holder who is gone. It leaves no doubt.
        """
        try:
            flags = _FORCE if force else 0
            return self._versioned(lambda io: io.operate_write_op(change.op, key, flags=flags), key)[1]
        finally:
            change.op.release()

    # Small tables: the omap of an object.

    def put_entry(self, key: str, entry: str, value: bytes) -> None:
        """The table is made if it is not there."""
        change = Change().touch()
        self._io.set_omap(change.op, (entry,), (value,))
        self.apply(key, change, force=True)

    def replace_entry(self, key: str, entry: str, value: bytes, new: bytes) -> None:
        """Only if it still is `value`; else nothing happens."""
        change = Change()
        change.op.omap_cmp(entry, value.decode("ascii"))
        self._io.set_omap(change.op, (entry,), (new,))
        with contextlib.suppress(NoObjectError, ChangedObjectError):
            self.apply(key, change, force=True)

    def drop_entry(self, key: str, entry: str, value: bytes | None = None) -> None:
        """With `value`, only if it still is that. Nothing happens if it is not there."""
        change = Change()
        if value is not None:
            change.op.omap_cmp(entry, value.decode("ascii"))
        self._io.remove_omap_keys(change.op, (entry,))
        with contextlib.suppress(NoObjectError, ChangedObjectError):
            self.apply(key, change, force=True)

    def entry(self, key: str, entry: str) -> bytes | None:
        """None if it, or the table, is not there."""
        return self._read_table(key, lambda op: self._io.get_omap_vals_by_keys(op, (entry,))).get(entry)

    def entries(self, key: str) -> dict[str, bytes]:
        """All of them; none if there is no such table."""
        found: dict[str, bytes] = {}
        last = ""
        while True:
            batch = self._some_entries(key, last)
            found.update(batch)
            if len(batch) < _OMAP_BATCH:
                return found
            last = max(batch)

    def _some_entries(self, key: str, after: str) -> dict[str, bytes]:
        return self._read_table(key, lambda op: self._io.get_omap_vals(op, after, "", _OMAP_BATCH))

    def _read_table(self, key: str, ask: Callable[[rados.ReadOp], Any]) -> dict[str, bytes]:
        with rados.ReadOpCtx() as op:
            pairs, _ = ask(op)
            try:
                self._io.operate_read_op(op, key)
            except rados.ObjectNotFound:
                return {}
            except rados.Error as error:
                raise self._failed(error, key) from None
            return {name: bytes(value or b"") for name, value in pairs}


def _batches(arguments: Iterable[T]) -> Iterator[list[T]]:
    """The first ones by themselves; of many, several together, for handing over costs about as much as a call."""
    left = iter(arguments)
    for one in islice(left, 4 * _WORKERS):
        yield [one]
    while some := list(islice(left, _BATCH)):
        yield some


def _each(work: Callable[[T], R], some: Sequence[T]) -> list[R]:
    return [work(one) for one in some]


def _number_of(error: rados.Error) -> int:
    """As in errno(3); 0 if it has none. The sign differs from one call of python3-rados to the other."""
    return abs(int(getattr(error, "errno", 0) or 0))


def _reason(error: rados.Error) -> str:
    return errno.errorcode.get(_number_of(error), str(error))


def _unreachable(place: RadosSpec, reason: str) -> UnreachableStoreError:
    return UnreachableStoreError(name=str(place), reason=reason)


def _why_not(place: RadosSpec, error: rados.Error) -> str:
    number = _number_of(error)
    if number == errno.ENOENT:
        return f"the cluster has no pool {place.pool!r}, or no key of client.{place.user} is found"
    if number in (errno.EPERM, errno.EACCES, errno.EINVAL):
        return f"the cluster refuses client.{place.user} ({_reason(error)})"
    if number == errno.ETIMEDOUT:
        return f"no answer within {CONNECT_TIMEOUT} s from the monitors in {place.conf}, or the key is wrong"
    return _reason(error)

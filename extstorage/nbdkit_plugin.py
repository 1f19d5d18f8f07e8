# SPDX-License-Identifier: BSD-2-Clause
"""The NBD server of one attached volume: a plugin that nbdkit runs, and the thread that answers the control socket.

    nbdkit -f --unix RUN/nbd.sock python .../extstorage/nbdkit_plugin.py volume=NAME run=RUN [store=PLACE]

RUN/store holds the name of the volume's store in the configuration; with store=, that place is taken instead. With
nbdkit-archipelago-plugin.so instead of "python", reads of plain blocks in RADOS don't come here (direct_reads.py).
Runs as the store's user. Requests come in parallel threads; os.preadv, os.pwrite and fdatasync let go of the
interpreter while they wait. A volume that can't be read is served all the same, with an error for each request, so that
Ganeti can attach it and hence remove it (Ganeti never removes a volume whose attach fails).
"""

# ruff: noqa: ARG001, A001 - nbdkit prescribes the names and arguments of its callbacks

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import nbdkit

from extstorage import answer, control, direct_reads, names, sentences, specs, stores
from extstorage.direct_reads import DirectReads
from extstorage.errors import (
    BadStoreError,
    BrokenError,
    FencedClientError,
    FencedError,
    FullStoreError,
    HeldError,
    NotOpenError,
    ReadOnlyError,
    UnreachableStoreError,
)
from extstorage.modes import Mode, was_served
from extstorage.session import Session
from extstorage.store import Info, Store
from extstorage.thread_states import ThreadStates
from ganeti_plugin import config as configuration
from ganeti_plugin import log
from ganeti_plugin.contract.systemd import notify
from ganeti_plugin.errors import Error, InputError

API_VERSION = 2

#: What clients are asked to stay below. Each of nbdkit's threads keeps a buffer of the largest size that it ever saw,
#: and each request may be copied twice: with 32 MiB, a guest could make its server need 1.5 GiB. Nothing gets slower.
LARGEST_REQUEST = names.MEBIBYTE

#: Seconds that a server with a predecessor tries to reach the store.
PATIENCE = 20.0

#: Seconds that written data stays in memory alone, if nobody flushes. The kernel would gather it for half a minute, and
#: whoever wants a snapshot then would wait for gigabytes; a page that changes all the time is written twice a second.
WRITE_BACK = 0.5

#: What a volume that can't be read pretends to have.
BROKEN_SIZE = names.MEBIBYTE

_ERRNO: Mapping[type[Error], int] = {
    ReadOnlyError: errno.EROFS,
    NotOpenError: errno.EPERM,
    HeldError: errno.EPERM,
    FencedError: errno.ESHUTDOWN,
    FencedClientError: errno.ESHUTDOWN,
    FullStoreError: errno.ENOSPC,
    BrokenError: errno.EIO,
}


#: What `status` tells of the requests since the server started.
_COUNTED = ("reads", "direct_reads", "read_bytes", "writes", "written_bytes", "flushes", "discards", "errors")


class Client(NamedTuple):
    """One connection."""

    session: Session | None
    #: Whether it is a block device's (names.GROWABLE_EXPORT).
    growable: bool
    threads: ThreadStates


#: mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX.
_MALLOC = {-3: 64 << 20, -1: 64 << 20, -8: 2}


class Server:
    """The process's one volume."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self.session: Session | None = None
        self.fault = ""
        self.complaints: dict[str, str] = {}
        self.ending = threading.Event()
        self.requests = dict.fromkeys(_COUNTED, 0)
        self.direct_reads: DirectReads | None = None

    @property
    def run(self) -> Path:
        return Path(self.settings["run"])

    def load(self) -> None:
        """Open the volume in the mode in which a predecessor left it."""
        fault = self.run / answer.FAULT_FILE
        if fault.exists():  # attach could not ask the store, and wants a server that answers at once
            self.fault = fault.read_text(encoding="utf-8").strip()
            return
        try:
            store, place = self.reach()
            self.direct_reads = self.direct(place)
            self.session = Session(store, self.settings["volume"], self.run, self.direct_reads)
            self.session.resume()
        except (Error, OSError) as error:
            self.fault = str(error)
            log.error("%s", error)
            fault.write_text(f"{error}\n", encoding="utf-8")

    def reach(self) -> tuple[Store, specs.Spec]:
        """The store, and where that is. A guest whose server died waits for it, rather than that we answer with errors.

        While the store can't be asked, the process ends now and then, so that systemd and attach know what goes on.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                place = self.place()
                # No deadline for what follows: a write whose fate is unknown can't be answered.
                return stores.open_store(place, deadline=0, pithos=self.pithos()), place
            except (BadStoreError, UnreachableStoreError) as error:
                if not was_served(self.run):
                    raise
                if time.monotonic() > deadline:
                    log.error("%s", error)
                    raise RuntimeError(str(error)) from None
            time.sleep(1.0)

    def direct(self, place: specs.Spec) -> DirectReads | None:
        """What reads without us, if the plugin that runs us can, and the volume is where it can."""
        if "direct" not in self.settings or not isinstance(place, specs.RadosSpec):
            return None
        return direct_reads.within_plugin(int(self.settings["direct"]), place)

    def pithos(self) -> Mapping[str, str]:
        """Where blocks are that the store does not have."""
        return {} if "store" in self.settings else configuration.load().archipelago.pithos

    def place(self) -> specs.Spec:
        """Which store the volume is in."""
        if "store" in self.settings:
            return specs.parse(self.settings["store"])
        settings = configuration.load().archipelago
        with contextlib.suppress(FileNotFoundError):
            return specs.spec_of(settings.stores, (self.run / stores.STORE_FILE).read_text(encoding="ascii").strip())
        return specs.spec_of(settings.stores, settings.default_store)

    def use(self) -> Session:
        if self.session is None:
            nbdkit.set_error(errno.EIO)
            raise RuntimeError(self.fault)
        return self.session

    def size(self) -> int:
        return self.session.size if self.session else BROKEN_SIZE

    def handle(self, request: control.Request) -> Mapping[str, object]:
        """Answer one call on the control socket."""
        command = request.get("command")
        if command == "status":
            return self.status()
        if command == "stop":
            # After the reply: the process ends at once when no client is connected.
            threading.Timer(0.05, nbdkit.shutdown).start()
            return {}
        if command == "replace":
            self.make_room()
            return {}
        if self.session is None:
            raise InputError(message=self.fault)
        if command == "open":
            self.session.open(bool(request["exclusive"]))
        elif command == "close":
            self.session.close()
        elif command == "flush":
            self.session.flush()
        elif command == "grow":
            self.session.grow(int(str(request["size"])))
        elif command == "snapshot":
            facts = request["facts"]
            assert facts is None or isinstance(facts, dict)
            self.session.snapshot(str(request["name"]), None if facts is None else Info(**facts))
        else:
            raise InputError(message=f"there is no command {command!r}")
        return self.status()

    def make_room(self) -> None:
        """For a successor: end with clients connected, which nbdkit would wait for. They connect again.

        What they had no answer to they send again, and a write that slips in after the flush is found under /run.
        """
        if self.session is not None:
            self.session.shutdown()
        (self.run / answer.FAULT_FILE).unlink(missing_ok=True)
        threading.Timer(0.05, os._exit, (control.REPLACED,)).start()

    def end_when_told(self) -> None:
        """At SIGTERM: a stop by systemd, or a restart, under its clients.

        Not nbdkit's own way, which answers what it has read but not begun with ESHUTDOWN: guests see that as an I/O
        error. Without an answer they send it again, to the successor.
        """
        signal.sigwait({signal.SIGTERM})
        self.flush_at_the_end()
        os._exit(control.REPLACED)

    def flush_at_the_end(self) -> None:
        self.ending.set()
        if self.session is not None:
            try:
                self.session.shutdown()
            except Exception as error:  # noqa: BLE001 - the marks under /run stay for a successor
                log.error("%s: not flushed at the end: %s", self.settings["volume"], error)

    def write_back(self) -> None:
        """Keep what a flush or a snapshot has to wait for small, until the end."""
        if self.session is None or self.session.is_durable:
            return
        while not self.ending.wait(WRITE_BACK):
            with self.complaining("write back"):
                self.session.begin_flush()

    @contextlib.contextmanager
    def complaining(self, work: str) -> Iterator[None]:
        """An error must not end a thread that goes on for ever; it is told when it is another one than before."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            if str(error) != self.complaints.get(work):
                self.complaints[work] = str(error)
                log.error("%s: %s: %s", self.settings["volume"], work, error)

    def status(self) -> Mapping[str, object]:
        mode = self.session.mode.value if self.session else "broken"
        holds = bool(self.session and self.session.holds_lock)
        fault = self.fault or (self.session.loss if self.session else "")
        found = {"mode": mode, "writer": holds, "size": self.size(), "fault": fault, "pid": os.getpid()}
        return {**found, "requests": self.counted()}

    def counted(self) -> Mapping[str, int]:
        """The requests, those among them that did not come here, too."""
        counted = dict(self.requests)
        if self.direct_reads is not None:
            direct = self.direct_reads.count()
            counted["reads"] += direct.reads
            counted["read_bytes"] += direct.read_bytes
            counted["direct_reads"] = direct.reads
        return counted

    def count(self, kind: str, volume_of: str = "", length: int = 0) -> None:
        """One request. Without a lock: at worst two threads that meet here are counted as one."""
        self.requests[kind] += 1
        if volume_of:
            self.requests[volume_of] += length

    def idle(self) -> bool:
        """Between calls: whether to go on."""
        if self.session is not None:
            with self.complaining("poll"):
                self.session.poll()
        return not self.ending.is_set()


def _keep_memory() -> None:
    """Have malloc keep the buffers of large requests, in two heaps, instead of a mapping for each.

    Fresh pages for every 4 MiB cost more than moving the data, and a heap for each thread more memory than the volume.
    """
    libc = ctypes.CDLL(None)
    for parameter, value in _MALLOC.items():
        libc.mallopt(parameter, value)


server = Server()


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    if key not in ("volume", "store", "run", "direct"):
        raise ValueError(f"unknown parameter {key}")
    server.settings[key] = value


def config_complete() -> None:
    _keep_memory()
    sentences.install()
    missing = {"volume", "run"} - set(server.settings)
    if missing:
        raise ValueError(f"the parameters {', '.join(sorted(missing))} are missing")


def after_fork() -> None:
    # The journal has our stderr too; one line for each message is enough.
    log.setup("snf-archipelago", to_stderr=not os.path.exists("/dev/log"))
    # Before there are other threads, such as librados', which inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=server.end_when_told, daemon=True).start()
    server.load()
    listener = control.listen(server.run)
    threading.Thread(target=control.serve, args=(listener, server.handle, server.idle), daemon=True).start()
    threading.Thread(target=server.write_back, daemon=True).start()
    notify("READY=1")


def cleanup() -> None:
    """After the last connection: flush and give the lock back. nbdkit calls this before it unloads the plugin."""
    server.flush_at_the_end()


def open(readonly: bool) -> Client:
    return Client(server.session, nbdkit.export_name() == names.GROWABLE_EXPORT, ThreadStates())


def close(h: Client) -> None:
    """nbdkit has ended the connection's threads."""
    h.threads.forget()


def get_size(h: Client) -> int:
    return names.LARGEST if h.growable else server.size()


def can_write(h: Client) -> bool:
    return h.session is not None and h.session.mode is not Mode.SNAPSHOT


def can_flush(h: Client) -> bool:
    return True


def can_fua(h: Client) -> int:
    return int(nbdkit.FUA_NATIVE)


def can_trim(h: Client) -> bool:
    return True


def can_zero(h: Client) -> bool:
    return True


def can_fast_zero(h: Client) -> bool:
    return True


def can_multi_conn(h: Client) -> bool:
    return True


def can_extents(h: Client) -> bool:
    return True


def can_cache(h: Client) -> int:
    return int(nbdkit.CACHE_NATIVE)


def block_size(h: Client) -> tuple[int, int, int]:
    return 1, names.PAGE, LARGEST_REQUEST


def _refuse(error: Exception) -> None:
    """Give the client the error number that tells most."""
    server.count("errors")
    if isinstance(error, OSError) and error.errno:
        nbdkit.set_error(error.errno)
    else:
        nbdkit.set_error(next((number for kind, number in _ERRNO.items() if isinstance(error, kind)), errno.EIO))


def pread(h: Client, buf: bytearray, offset: int, flags: int) -> None:
    h.threads.keep()
    server.count("reads", "read_bytes", len(buf))
    try:
        server.use().readinto(memoryview(buf), offset)
    except Exception as error:
        _refuse(error)
        raise


def pwrite(h: Client, buf: bytes, offset: int, flags: int) -> None:
    h.threads.keep()
    server.count("writes", "written_bytes", len(buf))
    try:
        session = server.use()
        session.write(memoryview(buf), offset)
        if flags & nbdkit.FLAG_FUA:
            session.flush()
    except Exception as error:
        _refuse(error)
        raise


def flush(h: Client, flags: int) -> None:
    server.count("flushes")
    try:
        server.use().flush()
    except Exception as error:
        _refuse(error)
        raise


def trim(h: Client, count: int, offset: int, flags: int) -> None:
    server.count("discards")
    try:
        session = server.use()
        if h.growable:
            session.zero(offset, count)
        else:
            session.discard(offset, count)
        if flags & nbdkit.FLAG_FUA:
            session.flush()
    except Exception as error:
        _refuse(error)
        raise


def zero(h: Client, count: int, offset: int, flags: int) -> None:
    server.count("discards")
    try:
        session = server.use()
        session.zero(offset, count)
        if flags & nbdkit.FLAG_FUA:
            session.flush()
    except Exception as error:
        _refuse(error)
        raise


def extents(h: Client, count: int, offset: int, flags: int) -> Iterable[tuple[int, int, int]]:
    found = []
    try:
        for extent in server.use().extents(offset, count):
            kind = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO if extent.hole else 0
            found.append((offset, extent.length, kind))
            offset += extent.length
    except Exception as error:
        _refuse(error)
        raise
    return found


def cache(h: Client, count: int, offset: int, flags: int) -> None:
    try:
        server.use().prefetch(offset, count)
    except Exception as error:
        _refuse(error)
        raise

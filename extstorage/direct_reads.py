# SPDX-License-Identifier: BSD-2-Clause
"""Which blocks a server's threads may read without Python: the other half of native/archipelago-plugin.c.

To say it once and too much would be to read old data for ever, so there are two rules:

- who says that a block is an object looks and says it in one piece. Who makes it untrue takes it back and lets others
  see that it is untrue in one piece, too. Neither comes in the middle of the other. For to look again after having said
  it would be too late for a read in between. So would be to take it back when others already act on the change: a write
  that finds its pages owned has no reason to take anything back, and is acknowledged at once;
- a new state of a volume begins with none: what is said with regard to an older one is not heard.

A read that has begun by then may end with what was there when it began. That is what any reader may get who asked
before a change was acknowledged.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from extstorage.specs import CONNECT_TIMEOUT, RadosSpec
from ganeti_plugin.log import warning

#: Of what the plugin and we know of each other; the same number in native/archipelago-plugin.c.
VERSION = 1

#: Seconds, as nanoseconds still a number of 64 bits.
_EVER = 1e9


class Counts(NamedTuple):
    """Reads that were answered without Python since the server started."""

    reads: int
    read_bytes: int


class Interface(Protocol):
    """The functions of the plugin; what they do is said there."""

    def connect(self) -> int: ...

    def trust(self, until: int) -> None: ...

    def begin(self) -> int: ...

    def allow(self, begun: int, index: int, name: str) -> None: ...

    def forget(self, index: int) -> None: ...

    def count(self) -> Counts: ...


class DirectReads:
    """Of one volume. Thread-safe."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._state = threading.Lock()
        self._asked = False

    def begin(self) -> Allowed:
        """For a new state of the volume. Nothing is allowed any more, nor by those that were made before."""
        return Allowed(self, self._interface, self._interface.begin())

    def trust(self, until: float) -> None:
        """Go on until then, in seconds of CLOCK_BOOTTIME; 0 not to."""
        self._interface.trust(int(min(until, _EVER) * 1e9))

    def connect(self) -> None:
        """In the background, and once: nobody waits for it, and a volume that is not read needs no second client."""
        with self._state:
            if self._asked:
                return
            self._asked = True
        try:
            threading.Thread(target=self._connect, name="direct-reads", daemon=True).start()
        except RuntimeError as error:  # there are too many; the read that brought us here has succeeded
            warning("reads go through Python: %s", error)

    def _connect(self) -> None:
        if failed := self._interface.connect():
            warning("reads go through Python, for a second client can't reach the cluster: %s", os.strerror(-failed))

    def count(self) -> Counts:
        return self._interface.count()


class Allowed:
    """The blocks of one state of a volume."""

    def __init__(self, reads: DirectReads, interface: Interface, begun: int) -> None:
        self._reads = reads
        self._interface = interface
        self._begun = begun
        self._saying = threading.Lock()

    def offer(self, index: int, plain: Callable[[int], str]) -> None:
        """Let the block be read as the object that `plain`, which waits for nobody, names; unless that is ""."""
        with self._saying:
            name = plain(index)
            if not name:
                return
            self._interface.allow(self._begun, index, name)
        self._reads.connect()

    @contextlib.contextmanager
    def forgetting(self, index: int) -> Iterator[None]:
        """Around what changes the answer of `plain`. It comes before the change is acknowledged."""
        with self._saying:
            self._interface.forget(index)
            yield


class _Place(ctypes.Structure):
    _fields_ = [(name, ctypes.c_char_p) for name in ("conf", "user", "keyring", "pool", "space", "timeout")]


# PYFUNCTYPE: they are over before the interpreter could be given to another thread and taken back. Connecting is not.
_CONNECT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Place))
_TRUST = ctypes.PYFUNCTYPE(None, ctypes.c_int64)
_BEGIN = ctypes.PYFUNCTYPE(ctypes.c_uint64)
_ALLOW = ctypes.PYFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p)
_FORGET = ctypes.PYFUNCTYPE(None, ctypes.c_uint64)
_COUNT = ctypes.PYFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint64))


class _Functions(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint64),
        ("connect", _CONNECT),
        ("trust", _TRUST),
        ("begin", _BEGIN),
        ("allow", _ALLOW),
        ("forget", _FORGET),
        ("count", _COUNT),
    ]


class _Native:
    """The plugin that this process runs in."""

    def __init__(self, functions: _Functions, spec: RadosSpec) -> None:
        self._functions = functions
        self._spec = spec

    def connect(self) -> int:
        spec = self._spec
        words = (str(spec.conf), spec.user, spec.keyring, spec.pool, spec.namespace, str(CONNECT_TIMEOUT))
        return int(self._functions.connect(_Place(*(word.encode() for word in words))))

    def trust(self, until: int) -> None:
        self._functions.trust(until)

    def begin(self) -> int:
        return int(self._functions.begin())

    def allow(self, begun: int, index: int, name: str) -> None:
        self._functions.allow(begun, index, name.encode("ascii"))

    def forget(self, index: int) -> None:
        self._functions.forget(index)

    def count(self) -> Counts:
        reads, read_bytes = ctypes.c_uint64(), ctypes.c_uint64()
        self._functions.count(reads, read_bytes)
        return Counts(reads.value, read_bytes.value)


def within_plugin(address: int, spec: RadosSpec) -> DirectReads | None:
    """What the plugin offers that told this address of its functions; None if it is of another version than we are."""
    functions = _Functions.from_address(address)
    if functions.version != VERSION:
        warning("reads go through Python, for nbdkit-archipelago-plugin.so is of another version")
        return None
    return DirectReads(_Native(functions, spec))

# SPDX-License-Identifier: BSD-2-Clause
"""Images that come as a stream: compressed files, URLs, standard input.

    file, URL, stdin ──> feeder: counts, hashes ──> decompressor, confined ──> blocks, judged at both ends

A stream is read once. Its first bytes are judged before a block is passed on, its last ones, its length and the digest
before anything becomes an image (`check`). Every stage has a limit of bytes, the decompressors of memory and time too
(threats H21, H22, H28). A container format that must be read here and there (qcow2) is written to a file first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple

from extstorage import sources
from extstorage.confined import confined, kill, seconds
from extstorage.content import Block, Take
from extstorage.names import BLOCK
from extstorage.remote import Remote
from extstorage.sources import DiskSource
from ganeti_plugin import containers
from ganeti_plugin.containers import HEAD, TAIL, Format
from ganeti_plugin.errors import InputError, StateError
from ganeti_plugin.files import LockedError, locked
from ganeti_plugin.run import spawn

STDIN = "-"

#: Bytes that are read at a time.
_PIECE = 1 << 20

#: Seconds that a feeder has to end after its reader.
_FINISH = 5.0

#: Where a stream is kept that must be read here and there, and the part of that file system that stays free.
SPOOL = Path("/var/tmp")
_STAYS_FREE = 0.1

#: Bytes after which that is looked at again.
_CHECKED = 64 << 20

#: A spool is a directory of that name, whose lock is held by who uses it; seconds that one may take to lock a new one.
_PREFIX = "snf-archipelago-spool-"
_LOCK = "lock"
_NEW = 60.0

_KILLED = "it was killed: it took more than {} s of CPU time, which image_limit decides, or too much memory"


class Compression(StrEnum):
    """How a stream is packed; the list is closed."""

    NONE = "none"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"


_SUFFIXES = {".gz": Compression.GZIP, ".bz2": Compression.BZIP2, ".xz": Compression.XZ, ".zst": Compression.ZSTD}

#: A dictionary or window beyond this is refused, not made room for.
_MEMORY = 256 << 20
_PROGRAMS: dict[Compression, Sequence[str]] = {
    Compression.GZIP: ("gzip", "-dc"),
    Compression.BZIP2: ("bzip2", "-dc"),
    Compression.XZ: ("xz", "-dc", f"--memlimit-decompress={_MEMORY}"),
    Compression.ZSTD: ("zstd", "-dcq", f"--memory={_MEMORY >> 20}MB"),
}


class StreamRefusedError(InputError):
    template = "{what} can't be imported: {reason}"


class DigestError(InputError):
    template = "{what} is not what it should be: its SHA-256 is {found}, not {wanted}"


class UnpackError(InputError):
    template = "{what} can't be unpacked with {program}: {reason}"


class NoSpoolError(StateError):
    template = "{what} has no room in {place}, where it must be unpacked first"


class Given(NamedTuple):
    """What somebody says about an image: a path, a URL or "-", and what it is."""

    place: str
    format: str = Format.RAW.value
    #: Empty: as the name's ending says.
    compression: str = ""
    #: Of the bytes as they come, before they are unpacked; empty: not known.
    sha256: str = ""

    @property
    def what(self) -> str:
        """For messages. A URL may hold a secret."""
        from extstorage.fetch import shown

        return "standard input" if self.place == STDIN else shown(self.place) if self.is_url else self.place

    @property
    def is_url(self) -> bool:
        return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", self.place) is not None

    def packed(self) -> Compression:
        if self.compression:
            return Compression(self.compression)
        name = self.place.partition("?")[0] if self.is_url else self.place
        return _SUFFIXES.get(os.path.splitext(name)[1].lower(), Compression.NONE)


class Terms(NamedTuple):
    """What the settings allow: bytes of an image, and what may be fetched."""

    limit: int
    hosts: Sequence[str] = ()
    networks: Sequence[str] = ()


@contextlib.contextmanager
def opened(given: Given, terms: Terms) -> Iterator[DiskSource]:
    """The source that was meant, judged; must be called as root."""
    if given.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", given.sha256):
        raise StreamRefusedError(what=given.what, reason="its SHA-256 is not one of 64 hexadecimal digits")
    if given.place == STDIN or given.is_url or given.sha256 or given.packed() is not Compression.NONE:
        with _flow(given, terms) as flow:
            if given.format == Format.RAW:
                yield StreamSource(flow, given, terms.limit)
            else:
                with (
                    _spooled(flow, given, terms.limit) as path,
                    sources.opened(path, given.format, terms.limit) as source,
                ):
                    yield source
        return
    with sources.opened(Path(given.place), given.format) as source:
        yield source


class Flow(NamedTuple):
    """The bytes of the disk, and those who bring them."""

    descriptor: int
    feeder: Feeder
    unpacker: Unpacker | None
    remote: Remote | None
    identity: str

    def check(self) -> None:
        """After the end: whether everybody says that this was all, and the digest is right."""
        self.feeder.finish()
        if not self.feeder.is_through:
            if self.unpacker is not None:
                self.unpacker.check()
            raise StreamRefusedError(what=self.feeder.given.what, reason="something follows its end")
        if self.remote is not None:
            self.remote.check()
        if self.unpacker is not None:
            self.unpacker.check()
        self.feeder.compare()


@contextlib.contextmanager
def _flow(given: Given, terms: Terms) -> Iterator[Flow]:
    with contextlib.ExitStack() as stack:
        # A digest that somebody gave says nothing of what an earlier stream had brought until it broke off.
        remote, identity = None, ""
        if given.place == STDIN:
            origin = 0
        elif given.is_url:
            remote = stack.enter_context(Remote.started(given.place, terms, has_digest=bool(given.sha256)))
            origin = remote.descriptor
        else:
            origin = stack.enter_context(sources.opened_file(Path(given.place)))
            identity = ":".join(map(str, sources.stamp(origin)))
        reading, writing = os.pipe2(os.O_CLOEXEC)
        output = stack.enter_context(open(reading, "rb", buffering=0))
        feeder = Feeder(origin, writing, given, terms.limit)
        unpacker = None
        if (packed := given.packed()) is not Compression.NONE:
            unpacker = stack.enter_context(Unpacker.started(packed, output.fileno(), given.what, terms.limit))
            output.close()
            output = stack.enter_context(open(unpacker.output, "rb", buffering=0))
        feeder.start()
        yield Flow(output.fileno(), feeder, unpacker, remote, f"{identity}:{packed}" if identity else "")


class Feeder(threading.Thread):
    """Moves the bytes as they come, counts them, and hashes them if somebody knows what the hash must be.

    It ends when its reader does. A terminal that nobody types at can't be given up: so it does not keep the process.
    """

    def __init__(self, origin: int, target: int, given: Given, limit: int) -> None:
        super().__init__(name="feeder", daemon=True)
        self._origin = origin
        self._target = target
        self.given = given
        self._limit = limit
        self._hash = hashlib.sha256()
        self._fault: Exception | None = None
        self.is_through = False

    def run(self) -> None:
        try:
            self._move()
            self.is_through = True
        except BrokenPipeError:
            pass  # the reader has had enough, and says why
        except (OSError, InputError) as error:
            self._fault = error
        finally:
            os.close(self._target)

    def _move(self) -> None:
        count = 0
        while piece := os.read(self._origin, _PIECE):
            count += len(piece)
            if count > self._limit:
                reason = f"it has more than {self._limit} bytes, the limit (image_limit)"
                raise StreamRefusedError(what=self.given.what, reason=reason)
            if self.given.sha256:
                self._hash.update(piece)
            left = memoryview(piece)
            while left:
                left = left[os.write(self._target, left) :]

    def finish(self) -> None:
        """Once its reader is at the end. It may still wait for a terminal, if its reader did not wait for the end."""
        self.join(_FINISH)
        if isinstance(self._fault, OSError):
            raise StreamRefusedError(what=self.given.what, reason=self._fault.strerror)
        if self._fault is not None:
            raise self._fault

    def compare(self) -> None:
        wanted = self.given.sha256.lower()
        if wanted and self._hash.hexdigest() != wanted:
            raise DigestError(what=self.given.what, found=self._hash.hexdigest(), wanted=wanted)


class Unpacker(NamedTuple):
    """A decompressor in its confinement."""

    process: subprocess.Popen[bytes]
    output: int
    complaints: int
    what: str
    program: str
    limit: int

    @classmethod
    @contextlib.contextmanager
    def started(cls, packed: Compression, source: int, what: str, limit: int) -> Iterator[Unpacker]:
        with contextlib.ExitStack() as stack:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            # Nobody reads the complaints before the end: what does not fit is lost, and nobody waits.
            complaints, complaining = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, complaints)
            try:
                command = [*confined(limit), *_PROGRAMS[packed]]
                process = spawn(command, stdin=source, stdout=writing, stderr=complaining, new_session=True)
            finally:
                os.close(writing)
                os.close(complaining)
            stack.callback(kill, process)
            yield cls(process, reading, complaints, what, str(packed), limit)

    def check(self) -> None:
        """A complaint is a refusal, too: bzip2 only warns of what follows the end."""
        status, text = self.process.wait(), ""
        with contextlib.suppress(BlockingIOError):
            text = os.read(self.complaints, 4096).decode("utf-8", "replace").strip()
        # unshare(1) of util-linux 2.38 stumbles over the death of what it started, others die of the same.
        if status == -signal.SIGKILL or text.startswith("unshare: "):
            raise UnpackError(what=self.what, program=self.program, reason=_KILLED.format(seconds(self.limit)))
        if status or text:
            lines = text.splitlines() or [f"it ended with {status}"]
            raise UnpackError(what=self.what, program=self.program, reason=lines[0][:200])


class StreamSource:
    """A raw disk, as a stream."""

    def __init__(self, flow: Flow, given: Given, limit: int) -> None:
        self._flow = flow
        self._given = given
        self._limit = limit
        self._count = 0
        self._head = b""
        self._tail = b""
        self.size: int | None = None
        self.identity = flow.identity

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        """A resumed import reads what it has already, too: the digest and the judgement are about all of it."""
        skipped = memoryview(bytearray(BLOCK)) if first else memoryview(b"")
        number = 0
        while True:
            buffer = skipped if number < first else take()
            length = self._fill(buffer)
            if length and number >= first:
                yield Block(number, buffer, length)
            if length < BLOCK:
                break
            number += 1
        self.size = self._count

    def _fill(self, buffer: memoryview) -> int:
        length = 0
        while length < BLOCK and (count := os.readv(self._flow.descriptor, [buffer[length:BLOCK]])):
            length += count
        if not self._count:
            self._head = bytes(buffer[: min(length, HEAD)])
            self._judge_head()
        self._count += length
        if self._count > self._limit:
            reason = f"it unpacks to more than {self._limit} bytes, the limit (image_limit)"
            raise StreamRefusedError(what=self._given.what, reason=reason)
        self._tail = (self._tail + bytes(buffer[max(0, length - TAIL) : length]))[-TAIL:]
        return length

    def _judge_head(self) -> None:
        """Nothing of what is refused gets into the store. What is packed once more is a refused format, too."""
        if len(self._head) == HEAD:
            self._judge(HEAD + TAIL, b"")

    def _judge(self, size: int, tail: bytes) -> None:
        """As a file of this size with this beginning and end would be judged."""
        descriptor = os.memfd_create("judged", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.pwrite(descriptor, tail, size - len(tail))
            os.pwrite(descriptor, self._head, 0)
            containers.judge(descriptor, Format.RAW, size_limit=self._limit)
        finally:
            os.close(descriptor)

    def check(self) -> None:
        self._flow.check()
        self._judge(self._count, self._tail)


@contextlib.contextmanager
def _spooled(flow: Flow, given: Given, limit: int) -> Iterator[Path]:
    """The stream as a file, which goes with us."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=SPOOL) as name, locked(Path(name, _LOCK), timeout=0):
        path = Path(name, "image")
        with path.open("xb") as spool:
            _fill(spool, flow, given, limit)
        flow.check()
        yield path


def _fill(spool: BinaryIO, flow: Flow, given: Given, limit: int) -> None:
    count = 0
    while piece := os.read(flow.descriptor, _PIECE):
        if count % _CHECKED < len(piece):
            usage = shutil.disk_usage(SPOOL)
            if usage.free < usage.total * _STAYS_FREE:
                raise NoSpoolError(what=given.what, place=SPOOL)
        count += len(piece)
        if count > limit:
            reason = f"it unpacks to more than {limit} bytes, the limit (image_limit)"
            raise StreamRefusedError(what=given.what, reason=reason)
        spool.write(piece)


def _sweep() -> None:
    """What killed imports left. A folder is locked soon after it was made."""
    for folder in SPOOL.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, LockedError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and time.time() - status.st_mtime > _NEW:
                with locked(folder / _LOCK, timeout=0):
                    shutil.rmtree(folder)

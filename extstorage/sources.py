# SPDX-License-Identifier: BSD-2-Clause
"""What an image is made from: a disk that is read once, from its beginning to its end, after it was judged.

A `DiskSource` is judged twice: before it is opened for use (a file's container format, a stream's first bytes), and by
`check` after its last block, before anything becomes an image. Nothing here looks at what the disk contains.

A qcow2 file is read by qemu-nbd, which is confined: another user, no network, no new privileges, limits; and it never
sees the file, only its bytes over a socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from extstorage.confined import NOBODY, await_start, confined, end, kill
from extstorage.content import Block, Take
from extstorage.names import BLOCK
from ganeti_plugin import containers
from ganeti_plugin.containers import Verdict
from ganeti_plugin.errors import InputError
from ganeti_plugin.run import spawn


class UnusableFileError(InputError):
    template = "the file {path} can't be imported: {reason}"


class DiskSource(Protocol):
    """A disk to take in. (`maps.Source` is what a block of a volume is read from.)"""

    @property
    def size(self) -> int | None:
        """Bytes; None as long as the end was not reached, for what tells its length only by ending."""

    @property
    def identity(self) -> str:
        """The same for the same unchanged disk, so that an interrupted import goes on; empty: it can't."""

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        """The blocks from number `first` on, in order, each in a buffer from `take`; what is left out is zeros.

        All but the last have BLOCK bytes. Each call of `take` is followed by a block that is yielded, or by the end;
        up to READING blocks later, if the source reads several at a time.
        """

    def check(self) -> None:
        """After the last block: raises an InputError if this was not what had been judged."""


class RawFile:
    """The file's bytes are the disk's."""

    def __init__(self, path: Path, descriptor: int, verdict: Verdict) -> None:
        self._path = path
        self._descriptor = descriptor
        self._before = stamp(descriptor)
        self.size = verdict.virtual_size
        self.identity = ":".join(map(str, (verdict.format, *self._before)))

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        position = first * BLOCK
        while (found := self._data_from(position)) < self.size:
            number = found // BLOCK
            block = Block(number, take(), min(BLOCK, self.size - number * BLOCK))
            self._read(block)
            yield block
            position = (number + 1) * BLOCK

    def _data_from(self, position: int) -> int:
        try:
            return os.lseek(self._descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise UnusableFileError(path=self._path, reason=error.strerror) from None
            return self.size

    def _read(self, block: Block) -> None:
        done = 0
        while done < block.length:
            try:
                count = os.preadv(self._descriptor, [block.buffer[done : block.length]], block.number * BLOCK + done)
            except OSError as error:
                raise UnusableFileError(path=self._path, reason=error.strerror) from None
            if not count:
                raise UnusableFileError(path=self._path, reason="it became shorter while it was read")
            done += count

    def check(self) -> None:
        if stamp(self._descriptor) != self._before:
            raise UnusableFileError(path=self._path, reason="it was changed while it was read")


class Qcow2File(RawFile):
    """The same, read through a confined qemu-nbd."""

    def __init__(self, path: Path, descriptor: int, verdict: Verdict, socket: Path) -> None:
        from extstorage.nbd_reader import NbdReader

        super().__init__(path, descriptor, verdict)
        self._reader = NbdReader(socket)
        if self._reader.size != self.size:
            raise UnusableFileError(path=path, reason=f"it is read as {self._reader.size} bytes instead of {self.size}")

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        return self._reader.blocks(first, take)


def stamp(descriptor: int) -> tuple[int, ...]:
    """What differs when a file was replaced or changed."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def opened(path: Path, declared: str, size_limit: int = containers.SIZE_LIMIT) -> Iterator[DiskSource]:
    """A file, judged; its disk has at most `size_limit` bytes.

    Must be called as root if the file is qcow2, since its reader becomes somebody else.
    """
    with opened_file(path) as descriptor, contextlib.ExitStack() as stack:
        verdict = containers.judge(descriptor, declared, size_limit=size_limit)
        if verdict.format is containers.Format.RAW:
            yield RawFile(path, descriptor, verdict)
        else:
            yield Qcow2File(path, descriptor, verdict, stack.enter_context(_converted(descriptor, verdict)))


@contextlib.contextmanager
def opened_file(path: Path) -> Iterator[int]:
    """A regular file, opened once; every later look goes to this descriptor, so that nobody can swap the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnusableFileError(path=path, reason=error.strerror) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnusableFileError(path=path, reason="it is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _converted(source: int, verdict: Verdict) -> Iterator[Path]:
    """The socket of a confined qemu-nbd that reads the container at `source`."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="snf-archipelago-import-", dir="/run"))
        # Nobody's group may enter, and speak to the server of the raw bytes; no other user of the node shall read them.
        os.chown(folder, 0, NOBODY)
        os.chmod(folder, 0o710)
        private = Path(folder) / "qemu"
        private.mkdir(mode=0o700)
        os.chown(private, NOBODY, NOBODY)
        raw, out = Path(folder) / "raw.sock", private / "out.sock"
        reader = spawn(
            ["nbdkit", "-f", "--exit-with-parent", "-r", "--unix", raw, "file", f"/proc/self/fd/{source}"],
            pass_fds=(source,),
            new_session=True,  # at Ctrl-C it is we who end it
        )
        stack.callback(end, reader)
        await_start(reader, raw.exists)
        os.chown(raw, 0, NOBODY)
        os.chmod(raw, 0o660)
        qemu_nbd = ["qemu-nbd", "-r", "-t", "-f", str(verdict.format), "-k", str(out), f"nbd+unix:///?socket={raw}"]
        converter = spawn([*confined(verdict.virtual_size), *qemu_nbd], new_session=True)
        stack.callback(kill, converter)
        await_start(converter, out.exists)
        yield out

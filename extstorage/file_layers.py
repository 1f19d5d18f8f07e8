# SPDX-License-Identifier: BSD-2-Clause
"""The bytes of volumes in files.

    data/OWNER/EPOCH.data        a layer: one sparse file, block i at i x 4 MiB
    data/OWNER/EPOCH.pages       which pages the layer has: 256 bytes per block, a bitmap and its CRC-32; zeros, or a
                                 hole, where it has nothing of a block
    content/AA/BB/DIGEST         a content block (file_contents.py)

A layer is one sparse file and not one file per block: that is one descriptor, one fdatasync(2) at each flush instead
of one per touched block, and SEEK_HOLE and hole punching do the rest. A block is still named (owner, epoch, index).
"""

# ruff: noqa: ARG002 - `store.py` prescribes the arguments

from __future__ import annotations

import contextlib
import errno
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from extstorage import file_system
from extstorage.bitmaps import runs_of
from extstorage.content_layer import ContentLayer
from extstorage.errors import BrokenError
from extstorage.file_system import FILE_MODE, FOLDER_MODE, NO_HOLES
from extstorage.maps import Source
from extstorage.names import BLOCK
from extstorage.pages import RECORD, from_record, mask_of, to_record
from ganeti_plugin.files import fsync_directory

#: The data file is what makes a layer be there: it is made last and removed last.
_SUFFIXES = (".pages", ".data")

#: In seconds.
_DAY = 86400

#: How often a folder that a collection removes is made again.
_ATTEMPTS = 8

_ZEROS = bytes(1 << 20)

#: A record of 128 + 4 bytes never lies across a sector's end, so that a dying machine writes it whole or not at all.
_STRIDE = 256
_RECORD_END = RECORD + 4
_NO_RECORD = bytes(_RECORD_END)

#: Records that are this near are written together, and so many of them: 4096 bytes, a block of most file systems, are
#: never skipped, so that no block is filled with zeros in vain.
_NEAR = 4096 // _STRIDE
_MOST_NEIGHBOURS = 1024

#: Ranges of a sparse file of which the disk is told ahead.
_AHEAD = 64

#: Records that are looked at together, and what is read at a time.
_NO_RECORDS = bytes(16 * _STRIDE)
_NO_CHUNK = bytes(1024 * _STRIDE)


class _FileRange:
    """Reading one sparse file, whose descriptor closes when the last user lets go."""

    _data = -1

    def __init__(self, path: str, flags: int) -> None:
        self._data = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)

    def __del__(self) -> None:
        if self._data >= 0:
            os.close(self._data)

    def _holes(self, position: int, length: int) -> Iterator[tuple[int, bool]]:
        end = position + length
        for first, stop in _with_data(self._data, position, end):
            if first > position:
                yield first - position, True
            yield stop - first, False
            position = stop
        if position < end:
            yield end - position, True


def _read(descriptor: int, position: int, buffer: memoryview) -> None:
    """Fill the buffer; behind the file's end there are zeros."""
    while buffer:
        count = os.preadv(descriptor, [buffer], position)
        if count == 0:
            buffer[:] = bytes(len(buffer))
            return
        buffer = buffer[count:]
        position += count


def _write(descriptor: int, data: memoryview, position: int) -> None:
    count = os.pwrite(descriptor, data, position)
    while count < len(data):
        data = data[count:]
        position += count
        count = os.pwrite(descriptor, data, position)


def _neighbours(indexes: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut ascending indexes of blocks into what is written at once: no farther apart than a file system's blocks.

    Each system call lets go of the interpreter, which a guest's requests then keep for as long as they need it.
    """
    first = 0
    for at in range(1, len(indexes) + 1):
        if at == len(indexes) or indexes[at] - indexes[at - 1] > _NEAR or at - first == _MOST_NEIGHBOURS:
            yield indexes[first:at]
            first = at


def _with_data(descriptor: int, position: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of a sparse file that are no holes: (first, end)."""
    while (first := _seek(descriptor, position, os.SEEK_DATA, end)) < end:
        position = _seek(descriptor, first, os.SEEK_HOLE, end)
        yield first, position


def _ahead(descriptor: int, ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same ranges, of which the disk is told many at a time: they are too far apart for the kernel to guess."""
    while some := list(islice(ranges, _AHEAD)):
        for first, end in some:
            os.posix_fadvise(descriptor, first, end - first, os.POSIX_FADV_WILLNEED)
        yield from some


def _seek(descriptor: int, position: int, whence: int, end: int) -> int:
    if position >= end:
        return end
    try:
        return min(end, os.lseek(descriptor, position, whence))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end


class ContentFile(_FileRange, ContentLayer):
    """A content block; the file may be shorter than a block, and reads as zeros behind its end."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), os.O_RDONLY)

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        _read(self._data, offset, buffer)

    def holes(self, index: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self._holes(offset, length)

    def prefetch(self, index: int, offset: int, length: int) -> None:
        os.posix_fadvise(self._data, offset, length, os.POSIX_FADV_WILLNEED)


class FileLayer(_FileRange):
    """One layer: a sparse data file and its page bitmaps."""

    _pages = -1

    def __init__(self, base: Path, writable: bool, *, make: bool) -> None:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | (os.O_CREAT if make else 0)
        self._base = base
        if make:
            base.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        # The data file is what makes a layer be there: whoever sees it finds the bitmaps.
        self._pages = os.open(f"{base}.pages", flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        super().__init__(f"{base}.data", flags)
        self._is_new = make

    def __del__(self) -> None:
        super().__del__()
        if self._pages >= 0:
            os.close(self._pages)

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        _read(self._data, index * BLOCK + offset, buffer)

    def write(self, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        _write(self._data, data, index * BLOCK + offset)

    def punch(self, index: int, offset: int, length: int, pages: int | None) -> None:
        position = index * BLOCK + offset
        try:
            file_system.punch_hole(self._data, position, length)
        except OSError as error:
            if error.errno not in NO_HOLES:
                raise
            self._write_zeros(position, length)

    def _write_zeros(self, position: int, length: int) -> None:
        end = min(position + length, os.fstat(self._data).st_size)
        while position < end:
            position += os.pwrite(self._data, _ZEROS[: end - position], position)

    def holes(self, index: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self._holes(index * BLOCK + offset, length)

    def prefetch(self, index: int, offset: int, length: int) -> None:
        os.posix_fadvise(self._data, index * BLOCK + offset, length, os.POSIX_FADV_WILLNEED)

    def plain_object(self, index: int) -> str:
        return ""

    def begin_sync(self) -> None:
        file_system.begin_sync(self._data)

    def sync(self) -> None:
        os.fdatasync(self._data)
        if self._is_new:
            # Not when the layer is made: a guest's first write after a snapshot waits for that.
            fsync_directory(self._base.parent)
            fsync_directory(self._base.parent.parent)
            self._is_new = False

    def load_pages(self, index: int) -> int:
        return self._pages_of(os.pread(self._pages, _RECORD_END, index * _STRIDE), index)

    def _pages_of(self, record: bytes, index: int) -> int:
        if not record.strip(b"\0"):
            return 0
        bits = record[:RECORD]
        if record[RECORD:] != _checksum(bits, index):
            raise BrokenError(path=f"{self._base}.pages", reason=f"the checksum of block {index} is wrong")
        return from_record(bits)

    def present(self) -> dict[int, int | None]:
        return dict(self.blocks())

    def blocks(self) -> Iterator[tuple[int, int | None]]:
        position = 0
        for first, end in _ahead(self._pages, _with_data(self._pages, 0, os.fstat(self._pages).st_size)):
            # Whole records, and none twice, wherever the file system has its holes.
            position = max(position, first - first % _STRIDE)
            while position < end:
                chunk = os.pread(self._pages, min(len(_NO_CHUNK), -(-end // _STRIDE) * _STRIDE - position), position)
                if not chunk:
                    return
                # Some file systems know of no holes: what has nothing is passed over in ever smaller pieces.
                for at in range(0, len(chunk), len(_NO_RECORDS)) if chunk != _NO_CHUNK else ():
                    records = chunk[at : at + len(_NO_RECORDS)]
                    if records != _NO_RECORDS:
                        yield from self._records((position + at) // _STRIDE, records)
                position += len(chunk)

    def _records(self, first: int, records: bytes) -> Iterator[tuple[int, int]]:
        for index, start in enumerate(range(0, len(records), _STRIDE), first):
            record = records[start : start + _RECORD_END]
            if record != _NO_RECORD:
                yield index, self._pages_of(record, index)

    def save_pages(self, pages: Mapping[int, int]) -> None:
        for near in _neighbours(sorted(pages)):
            self._save_neighbours(near, pages)
        os.fdatasync(self._pages)

    def _save_neighbours(self, indexes: Sequence[int], pages: Mapping[int, int]) -> None:
        """What is between them stays as it is: only who has the volume writes here, one flush at a time."""
        start = indexes[0] * _STRIDE
        records = bytearray(indexes[-1] * _STRIDE + _RECORD_END - start)
        if len(indexes) > 1:
            _read(self._pages, start, memoryview(records))
        for index in indexes:
            at = index * _STRIDE - start
            record = to_record(pages[index])
            records[at : at + _RECORD_END] = record + _checksum(record, index)
        _write(self._pages, memoryview(records), start)

    def free_blocks(self, keep: int) -> int:
        """Where holes can't be made, nothing is freed."""
        before = self.used()
        size = os.fstat(self._data).st_size
        try:
            for first, stop in runs_of(mask_of(0, -(-size // BLOCK)) & ~keep):
                end = min(size, stop * BLOCK)
                position = _seek(self._data, first * BLOCK, os.SEEK_DATA, end)
                if position < end:
                    position -= position % BLOCK
                    file_system.punch_hole(self._data, position, stop * BLOCK - position)
        except OSError as error:
            if error.errno not in NO_HOLES:
                raise
        return max(0, before - self.used())

    def used(self) -> int:
        return (os.fstat(self._data).st_blocks + os.fstat(self._pages).st_blocks) * 512


def _checksum(record: bytes, index: int) -> bytes:
    """Of a bitmap at its place: a record in the place of another is as wrong as a flipped bit."""
    return zlib.crc32(record, index & 0xFFFFFFFF).to_bytes(4, "little")


class FileLayers:
    """The layers of one store, whose folder `data` is `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _base(self, source: Source) -> Path:
        return self._directory / source.owner.hex() / f"{source.epoch:016x}"

    def open(self, source: Source) -> FileLayer:
        """For reading. Raises FileNotFoundError when there is no such layer."""
        return FileLayer(self._base(source), False, make=False)

    def make(self, source: Source) -> FileLayer:
        """For writing; made if it is not there.

        A collection that removes the owner's last other layer removes the folder too, perhaps under our feet.
        """
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                return FileLayer(self._base(source), True, make=True)
        return FileLayer(self._base(source), True, make=True)

    def sources(self, *, begun: bool) -> Iterator[Source]:
        """With `begun`, also those of which only the bitmaps are there: one is being made, or its maker failed."""
        suffixes = _SUFFIXES if begun else _SUFFIXES[-1:]
        for folder in sorted(os.listdir(self._directory)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                names = os.listdir(self._directory / folder)
                for stem in sorted({name.partition(".")[0] for name in names if name.endswith(suffixes)}):
                    yield Source(bytes.fromhex(folder), int(stem, 16))

    def empty_folders(self) -> list[Path]:
        """Of owners without a layer, for a day: so none is being made there."""
        old = time.time() - _DAY
        return [self._directory / folder for folder in os.listdir(self._directory) if self._is_empty(folder, old)]

    def _is_empty(self, folder: str, since: float) -> bool:
        path = self._directory / folder
        try:
            return not os.listdir(path) and path.stat().st_mtime < since
        except (FileNotFoundError, NotADirectoryError):
            return False

    def remove(self, source: Source) -> int:
        """Answers with the bytes freed."""
        freed = self.used(source)
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._base(source)}{suffix}")
        with contextlib.suppress(OSError):
            os.rmdir(self._base(source).parent)
        return freed

    def free_blocks(self, source: Source, keep: int) -> int:
        try:
            return FileLayer(self._base(source), True, make=False).free_blocks(keep)
        except FileNotFoundError:
            return 0

    def used(self, source: Source) -> int:
        """In bytes, bitmaps included."""
        total = 0
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(f"{self._base(source)}{suffix}").st_blocks * 512
        return total

# SPDX-License-Identifier: BSD-2-Clause
"""The files store: a directory, also on a file system that several nodes share.

    store.json                   what this is: version and identity
    lock                         flock(2): the lock of the whole store
    WORK.lock                    flock(2): held by work of which there is one at a time, such as gc
    maps/NAME/map                the map (maps.py); replaced atomically
    maps/NAME/map.old            the map before, until a collection: a second link to a file, for repairs
    maps/NAME/info.json          facts: origin, properties, ...
    maps/NAME/lock               flock(2): the lock of the volume; its content names the holder
    data/OWNER/EPOCH.data        a layer: one sparse file, block i at i x 4 MiB
    data/OWNER/EPOCH.pages       which pages the layer has: 256 bytes per block, a bitmap and its CRC-32
    content/AA/BB/DIGEST         a content block: its bytes, without the pages of zeros at its end
    content/new/DIGEST.TOKEN     the same, not durable yet
    content/lock                 held shared while one is put or touched, exclusively while one is removed

A layer is one sparse file and not one file per block: that is one descriptor, one fdatasync(2) at each flush instead
of one per touched block, and SEEK_HOLE and hole punching do the rest. A block is still named (owner, epoch, index).
"""

# ruff: noqa: ARG002 - `store.py` prescribes the arguments

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from extstorage import maps
from extstorage.bitmaps import runs_of
from extstorage.errors import (
    AlreadyThereError,
    BadStoreError,
    BrokenError,
    BusyError,
    HeldError,
    NoStoreError,
    NoSuchVolumeError,
    TooLargeForStoreError,
)
from extstorage.maps import Source, VolumeMap
from extstorage.names import BLOCK, PAGE, blocks_of, token
from extstorage.pages import FULL, RECORD, from_record, mask_of, to_record
from extstorage.scans import PIECE, Scan, name_of
from extstorage.store import Holder, Info, Layer, R, Space, Stored, T, decode_info, encode_info
from ganeti_plugin.files import LockedError, fsync_directory, locked, remove, remove_tree, write_atomically

VERSION = 2
STORE_FILE = "store.json"
FILE_MODE = 0o640
_FOLDERS = ("maps", "data", "content")
LOCK_TIMEOUT = 60.0
_LOCK_POLL = 0.01

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_NO_PUNCH = (errno.EOPNOTSUPP, errno.ENOSYS)
_MAP_LIMIT = 1 << 30
_DAY = 86400
_PREVIOUS = "map.old"
_ATTEMPTS = 8
_ZEROS = bytes(1 << 20)

#: A record of 128 + 4 bytes never lies across a sector's end, so that a dying machine writes it whole or not at all.
_STRIDE = 256
_RECORD_END = RECORD + 4
_NO_RECORD = bytes(_RECORD_END)

#: Records that are looked at together, and what is read at a time.
_NO_RECORDS = bytes(16 * _STRIDE)
_NO_CHUNK = bytes(1024 * _STRIDE)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)


class _FileRange:
    """Reading one sparse file, whose descriptor closes when the last user lets go."""

    _data = -1

    def __init__(self, path: str, flags: int) -> None:
        self._data = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)

    def __del__(self) -> None:
        if self._data >= 0:
            os.close(self._data)

    def _read(self, position: int, buffer: memoryview) -> None:
        while buffer:
            count = os.preadv(self._data, [buffer], position)
            if count == 0:
                buffer[:] = bytes(len(buffer))
                return
            buffer = buffer[count:]
            position += count

    def _holes(self, position: int, length: int) -> Iterator[tuple[int, bool]]:
        end = position + length
        for first, stop in _with_data(self._data, position, end):
            if first > position:
                yield first - position, True
            yield stop - first, False
            position = stop
        if position < end:
            yield end - position, True


def _with_data(descriptor: int, position: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of a sparse file that are no holes: (first, end)."""
    while (first := _seek(descriptor, position, os.SEEK_DATA, end)) < end:
        position = _seek(descriptor, first, os.SEEK_HOLE, end)
        yield first, position


def _seek(descriptor: int, position: int, whence: int, end: int) -> int:
    if position >= end:
        return end
    try:
        return min(end, os.lseek(descriptor, position, whence))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end


class ContentFile(_FileRange):
    """One content block; reads the same at every index."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), os.O_RDONLY)

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        self._read(offset, buffer)

    def holes(self, index: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self._holes(offset, length)

    def prefetch(self, index: int, offset: int, length: int) -> None:
        os.posix_fadvise(self._data, offset, length, os.POSIX_FADV_WILLNEED)

    def load_pages(self, index: int) -> int:
        return FULL

    def present(self) -> dict[int, int | None]:
        return {}

    def blocks(self) -> Iterator[tuple[int, int | None]]:
        return iter(())

    def write(self, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        raise OSError(errno.EROFS, "a content block is immutable")

    def punch(self, index: int, offset: int, length: int, pages: int | None) -> None:
        raise OSError(errno.EROFS, "a content block is immutable")

    def sync(self) -> None:
        """It was durable before any map named it."""

    def save_pages(self, pages: Mapping[int, int]) -> None:
        raise OSError(errno.EROFS, "a content block is immutable")


class FileLayer(_FileRange):
    """One layer: a sparse data file and its page bitmaps."""

    _pages = -1

    def __init__(self, base: Path, writable: bool, *, make: bool) -> None:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | (os.O_CREAT if make else 0)
        self._base = base
        if make:
            base.parent.mkdir(mode=0o750, exist_ok=True)
        # The data file is what makes a layer be there: whoever sees it finds the bitmaps.
        self._pages = os.open(f"{base}.pages", flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        super().__init__(f"{base}.data", flags)
        self._is_new = make

    def __del__(self) -> None:
        super().__del__()
        if self._pages >= 0:
            os.close(self._pages)

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        self._read(index * BLOCK + offset, buffer)

    def write(self, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        position = index * BLOCK + offset
        count = os.pwrite(self._data, data, position)
        while count < len(data):
            data = data[count:]
            position += count
            count = os.pwrite(self._data, data, position)

    def punch(self, index: int, offset: int, length: int, pages: int | None) -> None:
        position = index * BLOCK + offset
        try:
            _fallocate(self._data, _PUNCH_HOLE_KEEP_SIZE, position, length)
        except OSError as error:
            if error.errno not in _NO_PUNCH:
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
        for first, end in _with_data(self._pages, 0, os.fstat(self._pages).st_size):
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
        for index, bits in pages.items():
            record = to_record(bits)
            os.pwrite(self._pages, record + _checksum(record, index), index * _STRIDE)
        os.fdatasync(self._pages)

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
                    _fallocate(self._data, _PUNCH_HOLE_KEEP_SIZE, position, stop * BLOCK - position)
        except OSError as error:
            if error.errno not in _NO_PUNCH:
                raise
        return max(0, before - self.used())

    def used(self) -> int:
        return (os.fstat(self._data).st_blocks + os.fstat(self._pages).st_blocks) * 512


def _checksum(record: bytes, index: int) -> bytes:
    """Of a bitmap at its place: a record in the place of another is as wrong as a flipped bit."""
    return zlib.crc32(record, index & 0xFFFFFFFF).to_bytes(4, "little")


class _FileSystem:
    """One syncfs(2) for many files, instead of an fsync(2) for each.

    To be opened before they are written: then it hears of each error, also if somebody else has heard of it before.
    """

    _descriptor = -1

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def sync(self) -> None:
        if _libc.syncfs(self._descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


class FileLock:
    """flock(2) on a volume's lock file, whose content is the record of its holder."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def holder(self) -> Holder | None:
        return _read_holder(self._descriptor)

    def record(self, holder: Holder) -> None:
        data = json.dumps(holder._asdict()).encode()
        os.pwrite(self._descriptor, data.ljust(512), 0)
        os.ftruncate(self._descriptor, max(512, len(data)))
        os.fsync(self._descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError, RecursionError):
        return None


class FilesStore:
    """See the module. Make one with `open_store` or `create_store`."""

    atomic_pages = False
    #: The kernel, or the file server, knows who is dead. But one who only asks who has the lock has it for a moment.
    patience = 0.3
    foreign: Callable[[bytes], Layer | None] | None = None

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps = directory / "maps"
        self._data = directory / "data"
        self._content = directory / "content"
        self._new_contents: dict[bytes, Path] = {}
        self._contents_unsynced = False
        self._contents_failure: Exception | None = None
        self._file_system: _FileSystem | None = None
        self._contents_syncing = threading.Lock()
        self._contents_mutex = threading.Lock()

    @property
    def title(self) -> str:
        return str(self._directory)

    def close(self) -> None:
        """Its files close with what uses them."""

    def space(self) -> Space:
        found = os.statvfs(self._directory)
        # As df(1) counts: what is set aside for others is not ours to fill.
        total = found.f_blocks - found.f_bfree + found.f_bavail
        return Space(total * found.f_frsize, found.f_bavail * found.f_frsize)

    def _folder(self, name: str) -> Path:
        return self._maps / name

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self._maps) if not name.startswith("."))

    def possible_names(self) -> list[str]:
        return self.names()

    def versions(self) -> dict[str, object]:
        return {name: self.map_version(name) for name in self.names()}

    def each(self, work: Callable[[T], R], arguments: Sequence[T]) -> Iterator[R]:
        return map(work, arguments)

    def exists(self, name: str) -> bool:
        return self._folder(name).is_dir()

    def read_map(self, name: str) -> VolumeMap:
        path = self._folder(name) / "map"
        return maps.decode(self._read(path, name), str(path))

    def scan_map(self, name: str, look: Callable[[Scan], R]) -> R:
        path = self._folder(name) / "map"

        def pieces() -> Iterator[bytes]:
            stream.seek(maps.HEADER)
            with self._reading(path, name):
                while piece := stream.read(PIECE):
                    yield piece

        with contextlib.ExitStack() as stack:
            with self._reading(path, name):
                stream = stack.enter_context(path.open("rb"))
                header = stream.read(maps.HEADER)
            # Read twice, for what it says is often known by its name.
            return look(Scan(header, str(path), pieces, name_of(pieces())))

    def read_heads(self, name: str) -> VolumeMap:
        path = self._folder(name) / "map"
        with self._reading(path, name), path.open("rb") as stream:
            return maps.decode_heads(stream.read, str(path))

    def write_map(self, name: str, volume_map: VolumeMap, packed: bytes = b"") -> None:
        path = self._folder(name) / "map"
        # Something to go back to, if there can be; where there can't, nothing is lost.
        with contextlib.suppress(OSError):
            remove(path.with_name(_PREVIOUS))
            os.link(path, path.with_name(_PREVIOUS))
        write_atomically(path, maps.encode(volume_map, packed), mode=FILE_MODE)

    def settle_map(self, name: str) -> None:
        fsync_directory(self._folder(name))

    def previous_map(self, name: str) -> VolumeMap | None:
        path = self._folder(name) / _PREVIOUS
        return maps.decode(path.read_bytes(), str(path)) if path.exists() else None

    def forget_previous_maps(self) -> None:
        for path in self._maps.glob(f"*/{_PREVIOUS}"):
            remove(path)

    def map_version(self, name: str) -> object:
        try:
            status = os.stat(self._folder(name) / "map")
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def read_info(self, name: str) -> Info:
        path = self._folder(name) / "info.json"
        return decode_info(self._read(path, name), path)

    def write_info(self, name: str, info: Info) -> None:
        write_atomically(self._folder(name) / "info.json", encode_info(info), mode=FILE_MODE)

    def _read(self, path: Path, name: str) -> bytes:
        with self._reading(path, name), path.open("rb") as stream:
            # Not the limit alone: read() makes room for all that it may return.
            return stream.read(min(_MAP_LIMIT, os.fstat(stream.fileno()).st_size))

    @contextlib.contextmanager
    def _reading(self, path: Path, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if not self.exists(name):
                raise NoSuchVolumeError(what="volume or snapshot", name=name, store=self.title) from None
            raise BrokenError(path=path, reason="the file is missing") from None
        except OSError as error:
            raise BrokenError(path=path, reason=f"it can't be read ({error.strerror})") from None

    def check_size(self, size: int) -> None:
        """The file system itself is asked, for what it allows depends on how it was made. A layer has whole blocks."""
        probe = self._content / "new" / f"size.{token()}"
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            os.unlink(probe)
            os.ftruncate(descriptor, blocks_of(size) * BLOCK)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise TooLargeForStoreError(size=size, store=self.title) from None
        finally:
            os.close(descriptor)

    def create(self, name: str, volume_map: VolumeMap, info: Info) -> None:
        self._create(name, maps.encode(volume_map), info)

    def create_copy(self, name: str, origin: str, head: VolumeMap, info: Info) -> None:
        path = self._folder(origin) / "map"
        self._create(name, maps.copied(self._read(path, origin), head, str(path)), info)

    def _create(self, name: str, data: bytes, info: Info) -> None:
        if self.exists(name):
            raise AlreadyThereError(name=name, store=self.title, what="volume, snapshot or image")
        new = self._maps / f".new-{name}"
        remove_tree(new)
        try:
            new.mkdir(mode=0o750)
            # Not atomically: nobody looks for it here, and each step that a disk must wait for takes its time.
            _write_files({new / "map": data, new / "info.json": encode_info(info)})
            fsync_directory(new)
            os.rename(new, self._folder(name))
        except BaseException:
            remove_tree(new)
            raise
        fsync_directory(self._maps)

    def remove(self, name: str) -> None:
        gone = self._maps / f".gone-{name}"
        remove_tree(gone)
        try:
            os.rename(self._folder(name), gone)
        except FileNotFoundError:
            return
        fsync_directory(self._maps)
        remove_tree(gone)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._folder(old), self._folder(new))
        fsync_directory(self._maps)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with locked(self._directory / "lock", timeout=LOCK_TIMEOUT, mode=FILE_MODE):
            yield

    @contextlib.contextmanager
    def only_one(self, work: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._directory / f"{work}.lock", timeout=0, mode=FILE_MODE))
            except LockedError:
                raise BusyError(work=work, store=self.title) from None
            yield

    def tidy(self, *, dry_run: bool = False) -> int:
        """A new content block that nobody gave its name for a day belongs to an import that was killed."""
        old = time.time() - _DAY
        contents = [path for path in (self._content / "new").iterdir() if _written(path) < old]
        with self.locked():
            left = [self._maps / name for name in os.listdir(self._maps) if name.startswith((".new-", ".gone-"))]
            for path in [] if dry_run else left:
                remove_tree(path)
        for path in [] if dry_run else contents:
            remove(path)
        return len(left) + len(contents)

    def loss(self, name: str) -> str:
        try:
            descriptor = os.open(self._folder(name) / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return ""
        try:
            last = _read_holder(descriptor)
        finally:
            os.close(descriptor)
        return last.loss if last else ""

    def lock_volume(self, name: str, *, shared: bool = False, patience: float = 0.0) -> FileLock:
        while self.exists(name):
            try:
                descriptor = self._open_lock(name, shared)
            except FileNotFoundError:
                continue
            lock = FileLock(descriptor)
            try:
                _lock_within(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience)
            except BlockingIOError:
                holder = lock.holder()
                lock.release()
                raise HeldError(name=name, holder=holder or "an unknown holder") from None
            except BaseException:
                lock.release()
                raise
            if self._is_lock_of(name, descriptor):
                return lock
            lock.release()
        raise NoSuchVolumeError(what="volume or snapshot", name=name, store=self.title)

    def _is_lock_of(self, name: str, descriptor: int) -> bool:
        """Not if the volume was removed, or got another name, after the file was opened: another may have its name."""
        for path in (self._folder(name) / "lock", self._folder(name) / "map"):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return True
        return False

    def _open_lock(self, name: str, shared: bool) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._folder(name) / "lock", flags | os.O_RDWR | os.O_CREAT, FILE_MODE)
        except OSError as error:
            if error.errno != errno.EROFS or not shared:
                raise
            # Who only reads needs no lock where nobody can remove anything.
            return os.open(self._folder(name) / "map", flags | os.O_RDONLY)

    def ask_for_lock(self, name: str) -> None:
        os.close(os.open(self._folder(name) / "wanted", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))

    def lock_is_asked_for(self, name: str) -> bool:
        return (self._folder(name) / "wanted").exists()

    def forget_request(self, name: str) -> None:
        remove(self._folder(name) / "wanted")

    def _base(self, source: Source) -> Path:
        return self._data / source.owner.hex() / f"{source.epoch:016x}"

    def layer(self, source: Source, *, writable: bool = False) -> Layer:
        try:
            if source.is_content:
                return ContentFile(self._content_path(source.owner))
            if writable:
                return self._made_layer(source)
            return FileLayer(self._base(source), False, make=False)
        except FileNotFoundError as error:
            found = self.foreign(source.owner) if self.foreign and source.is_content else None
            if found is None:
                raise BrokenError(path=str(error.filename), reason="the data of a layer is missing") from None
            return found

    def _made_layer(self, source: Source) -> FileLayer:
        """A collection that removes the owner's last other layer removes the folder too, perhaps under our feet."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                return FileLayer(self._base(source), True, make=True)
        return FileLayer(self._base(source), True, make=True)

    def layers(self) -> Iterator[Source]:
        for folder in sorted(os.listdir(self._data)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in sorted(os.listdir(self._data / folder)):
                    stem, dot, kind = name.partition(".")
                    if kind == "data" and dot:
                        yield Source(bytes.fromhex(folder), int(stem, 16))

    def remove_layer(self, source: Source, *, patience: float = math.inf) -> int:
        freed = self.used(source)
        for suffix in (".pages", ".data"):
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
        total = 0
        for suffix in (".pages", ".data"):
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(f"{self._base(source)}{suffix}").st_blocks * 512
        return total

    def stored(self) -> Stored:
        occupied = sum(self.used(source) for source in self.layers())
        contents = 0
        for digest, _ in self.contents():
            contents += 1
            occupied += self.content_used(digest)
        return Stored(occupied, contents)

    # Content.

    def _content_path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._content / name[:2] / name[2:4] / name

    def put_content(self, digest: bytes, data: memoryview) -> bool:
        path = self._content_path(digest)
        with self._contents_mutex:
            if self._file_system is None:
                self._file_system = _FileSystem(self._content)
            if digest in self._new_contents:
                return False
        if self._touch(path):
            # Its name may be so new that who made it has not synced it yet.
            with self._contents_mutex:
                self._contents_unsynced = True
            return False
        new = self._content / "new" / f"{path.name}.{token()}"
        try:
            _write_new(new, data)
        except BaseException:
            remove(new)
            raise
        with self._contents_mutex:
            # Not before it is complete: another thread may be in `sync_contents`.
            if self._new_contents.setdefault(digest, new) is new:
                return True
        remove(new)
        return False

    def _touch(self, path: Path) -> bool:
        """Give a content block a new version; answers whether it is there."""
        with self._content_lock(fcntl.LOCK_SH):
            now = time.time_ns()
            try:
                os.utime(path, ns=(now, now))
            except FileNotFoundError:
                return False
            return True

    @contextlib.contextmanager
    def _content_lock(self, kind: int) -> Iterator[None]:
        descriptor = os.open(self._content / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def sync_contents(self) -> None:
        """A block gets its name only when it is durable: a name of which the bytes are lost would be taken for it."""
        # One after the other: a thread that has nothing to do must not be done before the one that does it.
        with self._contents_syncing:
            if self._contents_failure is not None:
                # The kernel reports lost pages once; after that, this process may not claim anything again.
                raise self._contents_failure
            with self._contents_mutex:
                new, self._new_contents = self._new_contents, {}
                unsynced, self._contents_unsynced = self._contents_unsynced or bool(new), False
            if not unsynced:
                return
            try:
                self._sync_file_system()
                if new:
                    self._name_contents(new)
                    self._sync_file_system()
            except Exception as error:
                self._contents_failure = error
                raise

    def _name_contents(self, new: Mapping[bytes, Path]) -> None:
        folders = set()
        with self._content_lock(fcntl.LOCK_SH):
            for digest, temporary in new.items():
                path = self._content_path(digest)
                if path.parent not in folders:
                    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                    folders.add(path.parent)
                os.rename(temporary, path)

    def _sync_file_system(self) -> None:
        assert self._file_system is not None
        self._file_system.sync()

    def contents(self) -> Iterator[tuple[bytes, object]]:
        """Folder by folder: there may be millions."""
        for entry in self._content_files():
            with contextlib.suppress(FileNotFoundError, ValueError):
                yield bytes.fromhex(entry.name), entry.stat(follow_symlinks=False).st_mtime_ns

    def walk_contents(self) -> Iterator[tuple[bytes, bool]]:
        for entry in self._content_files():
            with contextlib.suppress(ValueError):
                yield bytes.fromhex(entry.name), True

    def enter_content(self, digest: bytes) -> None:
        """Its file is its entry."""

    def _content_files(self) -> Iterator[os.DirEntry[str]]:
        for first in _hex_folders(self._content):
            for second in _hex_folders(first):
                with os.scandir(second) as entries:
                    yield from sorted(entries, key=lambda entry: entry.name)

    def content_used(self, digest: bytes) -> int:
        try:
            return self._content_path(digest).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def remove_content(self, digest: bytes, version: object) -> int:
        path = self._content_path(digest)
        with self._content_lock(fcntl.LOCK_EX):
            try:
                status = path.stat()
            except FileNotFoundError:
                return 0
            if status.st_mtime_ns != version:
                return 0
            os.unlink(path)
        return status.st_blocks * 512


def _lock_within(descriptor: int, kind: int, seconds: float) -> None:
    """Raises BlockingIOError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_LOCK_POLL)


def _written(path: Path) -> float:
    """When a file was last written; one that got its name just now is young."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _write_files(files: Mapping[Path, bytes]) -> None:
    """Durably, all of them together: the first fsync(2) commits what was done for the others, too."""
    descriptors = []
    try:
        for path, data in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            descriptors.append(descriptor)
            os.fchmod(descriptor, FILE_MODE)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _write_new(path: Path, data: memoryview) -> None:
    """Past the page cache, where that is possible: it is not read soon, and a copy there costs more than the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        if len(data) % PAGE == 0:
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except OSError as error:
                # The file system or the memory's alignment does not allow it.
                if error.errno != errno.EINVAL or not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                    raise
                fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
    finally:
        os.close(descriptor)


def _hex_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if len(path.name) == 2)


def create_store(directory: Path) -> FilesStore:
    """Make an empty store, or open the one that is there."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    _check_not_foreign(directory)  # before there is even a lock in it
    with locked(directory / "lock", timeout=LOCK_TIMEOUT, mode=FILE_MODE):
        if not (directory / STORE_FILE).exists():
            _check_not_foreign(directory)
            for name in (*_FOLDERS, "content/new"):
                (directory / name).mkdir(mode=0o750, exist_ok=True)
            for path in (directory / "content", directory):
                fsync_directory(path)
            with contextlib.suppress(PermissionError):
                fsync_directory(directory.parent)
            import uuid

            facts = {"kind": "snf-archipelago", "version": VERSION, "uuid": str(uuid.uuid4())}
            write_atomically(directory / STORE_FILE, (json.dumps(facts) + "\n").encode(), mode=FILE_MODE)
    return open_store(directory)


def _check_not_foreign(directory: Path) -> None:
    found = {*os.listdir(directory)}
    foreign = sorted(found - {"lock", "lost+found", *_FOLDERS})
    if foreign and STORE_FILE not in found:
        raise BadStoreError(path=directory, reason=f"it holds other files, such as {foreign[0]!r}")


def open_store(directory: Path) -> FilesStore:
    """Open a store that exists; raises BadStoreError."""
    try:
        facts = json.loads((directory / STORE_FILE).read_bytes())
    except FileNotFoundError:
        raise NoStoreError(path=directory, reason=f"the file {STORE_FILE} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadStoreError(path=directory, reason=f"{STORE_FILE} can't be read: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") != "snf-archipelago" or facts.get("version") != VERSION:
        raise BadStoreError(path=directory, reason=f"its version is not {VERSION}")
    return FilesStore(directory)

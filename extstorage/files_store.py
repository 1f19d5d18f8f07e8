# SPDX-License-Identifier: BSD-2-Clause
"""The files store: a directory, also on a file system that several nodes share.

    store.json                   what this is: version and identity
    lock                         flock(2): the lock of the whole store
    maps/NAME/map                the map (maps.py); replaced atomically
    maps/NAME/info.json          facts: origin, properties, ...
    maps/NAME/lock               flock(2): the lock of the volume; its content names the holder
    data/OWNER/EPOCH.data        a layer: one sparse file, block i at i x 4 MiB
    data/OWNER/EPOCH.pages       which pages the layer has: 128 bytes per block

A layer is one sparse file and not one file per block: that is one descriptor, one fdatasync(2) at each flush instead
of one per touched block, and SEEK_HOLE and hole punching do the rest. A block is still named (owner, epoch, index).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from extstorage import maps
from extstorage.errors import AlreadyThereError, BadStoreError, BrokenError, HeldError, NoSuchVolumeError
from extstorage.maps import Source, VolumeMap
from extstorage.names import BLOCK
from extstorage.pages import EMPTY_RECORD, RECORD, from_record, to_record
from extstorage.store import Holder, Info
from ganeti_plugin.files import fsync_directory, locked, remove, write_atomically

VERSION = 1
STORE_FILE = "store.json"
FILE_MODE = 0o640
LOCK_TIMEOUT = 60.0

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_NO_PUNCH = (errno.EOPNOTSUPP, errno.ENOSYS)
_MAP_LIMIT = 1 << 30
_ZEROS = bytes(1 << 20)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)


class FileLayer:
    """One layer: a sparse data file and its page bitmap. The descriptors close when the last user lets go."""

    def __init__(self, base: Path, writable: bool) -> None:
        flags = (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
        self._data = self._pages = -1
        if writable:
            base.parent.mkdir(mode=0o750, exist_ok=True)
        self._data = os.open(f"{base}.data", flags, FILE_MODE)
        self._pages = os.open(f"{base}.pages", flags, FILE_MODE)
        if writable:
            fsync_directory(base.parent)
            fsync_directory(base.parent.parent)

    def __del__(self) -> None:
        for descriptor in (self._data, self._pages):
            if descriptor >= 0:
                os.close(descriptor)

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        position = index * BLOCK + offset
        while buffer:
            count = os.preadv(self._data, [buffer], position)
            if count == 0:
                buffer[:] = bytes(len(buffer))
                return
            buffer = buffer[count:]
            position += count

    def write(self, index: int, offset: int, data: memoryview) -> None:
        position = index * BLOCK + offset
        while data:
            count = os.pwrite(self._data, data, position)
            data = data[count:]
            position += count

    def punch(self, index: int, offset: int, length: int) -> None:
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
        position = index * BLOCK + offset
        end = position + length
        while position < end:
            data = min(end, self._seek(position, os.SEEK_DATA, end))
            if data > position:
                yield data - position, True
            if data < end:
                hole = min(end, self._seek(data, os.SEEK_HOLE, end))
                yield hole - data, False
                data = hole
            position = data

    def _seek(self, position: int, whence: int, end: int) -> int:
        try:
            return os.lseek(self._data, position, whence)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return end

    def prefetch(self, index: int, offset: int, length: int) -> None:
        os.posix_fadvise(self._data, index * BLOCK + offset, length, os.POSIX_FADV_WILLNEED)

    def sync(self) -> None:
        os.fdatasync(self._data)

    def load_pages(self, index: int) -> int:
        return from_record(os.pread(self._pages, RECORD, index * RECORD))

    def load_all_pages(self) -> dict[int, int]:
        found: dict[int, int] = {}
        end = os.fstat(self._pages).st_size
        position = 0
        while position < end:
            chunk = os.pread(self._pages, RECORD << 10, position)
            if not chunk:
                break
            if chunk.count(0) != len(chunk):
                for start in range(0, len(chunk), RECORD):
                    record = chunk[start : start + RECORD]
                    if record != EMPTY_RECORD:
                        found[(position + start) // RECORD] = from_record(record)
            position += len(chunk)
        return found

    def save_pages(self, pages: Mapping[int, int]) -> None:
        for index, bits in pages.items():
            os.pwrite(self._pages, to_record(bits), index * RECORD)
        os.fdatasync(self._pages)

    def free_blocks(self, keep: frozenset[int]) -> int:
        before = self.used()
        for index in range(-(-os.fstat(self._data).st_size // BLOCK)):
            if index not in keep:
                self.punch(index, 0, BLOCK)
        return max(0, before - self.used())

    def used(self) -> int:
        return (os.fstat(self._data).st_blocks + os.fstat(self._pages).st_blocks) * 512


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
    except (ValueError, TypeError):
        return None


class FilesStore:
    """See the module. Make one with `open_store` or `create_store`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps = directory / "maps"
        self._data = directory / "data"

    @property
    def title(self) -> str:
        return str(self._directory)

    def _folder(self, name: str) -> Path:
        return self._maps / name

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self._maps) if not name.startswith("."))

    def exists(self, name: str) -> bool:
        return self._folder(name).is_dir()

    def read_map(self, name: str) -> VolumeMap:
        path = self._folder(name) / "map"
        return maps.decode(self._read(path, name), str(path))

    def read_heads(self, name: str) -> VolumeMap:
        path = self._folder(name) / "map"
        with self._reading(path, name), path.open("rb") as stream:
            return maps.decode_heads(stream.read, str(path))

    def write_map(self, name: str, volume_map: VolumeMap) -> None:
        write_atomically(self._folder(name) / "map", maps.encode(volume_map), mode=FILE_MODE)

    def map_version(self, name: str) -> object:
        try:
            status = os.stat(self._folder(name) / "map")
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def read_info(self, name: str) -> Info:
        path = self._folder(name) / "info.json"
        data = self._read(path, name)
        try:
            return Info(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise BrokenError(path=path, reason=f"the facts can't be read ({error})") from None

    def write_info(self, name: str, info: Info) -> None:
        write_atomically(self._folder(name) / "info.json", _info_bytes(info), mode=FILE_MODE)

    def _read(self, path: Path, name: str) -> bytes:
        with self._reading(path, name), path.open("rb") as stream:
            return stream.read(_MAP_LIMIT)

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

    def create(self, name: str, volume_map: VolumeMap, info: Info) -> None:
        if self.exists(name):
            raise AlreadyThereError(name=name, store=self.title, what="volume, snapshot or image")
        new = self._maps / f".new-{name}"
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(mode=0o750)
            write_atomically(new / "map", maps.encode(volume_map), mode=FILE_MODE)
            write_atomically(new / "info.json", _info_bytes(info), mode=FILE_MODE)
            os.rename(new, self._folder(name))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        fsync_directory(self._maps)

    def remove(self, name: str) -> None:
        gone = self._maps / f".gone-{name}"
        shutil.rmtree(gone, ignore_errors=True)
        try:
            os.rename(self._folder(name), gone)
        except FileNotFoundError:
            return
        fsync_directory(self._maps)
        shutil.rmtree(gone, ignore_errors=True)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._folder(old), self._folder(new))
        fsync_directory(self._maps)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with locked(self._directory / "lock", timeout=LOCK_TIMEOUT, mode=FILE_MODE):
            yield

    def lock_volume(self, name: str, *, shared: bool = False) -> FileLock:
        if not self.exists(name):
            raise NoSuchVolumeError(what="volume or snapshot", name=name, store=self.title)
        path = self._folder(name) / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise HeldError(name=name, holder=holder or "an unknown holder") from None
        return FileLock(descriptor)

    def ask_for_lock(self, name: str) -> None:
        os.close(os.open(self._folder(name) / "wanted", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))

    def lock_is_asked_for(self, name: str) -> bool:
        return (self._folder(name) / "wanted").exists()

    def forget_request(self, name: str) -> None:
        remove(self._folder(name) / "wanted")

    def _base(self, source: Source) -> Path:
        return self._data / source.owner.hex() / f"{source.epoch:016x}"

    def layer(self, source: Source, *, writable: bool = False) -> FileLayer:
        try:
            return FileLayer(self._base(source), writable)
        except FileNotFoundError as error:
            raise BrokenError(path=str(error.filename), reason="the data of a layer is missing") from None

    def layers(self) -> Iterator[Source]:
        for folder in sorted(os.listdir(self._data)):
            for name in sorted(os.listdir(self._data / folder)):
                stem, dot, kind = name.partition(".")
                if kind == "data" and dot:
                    yield Source(bytes.fromhex(folder), int(stem, 16))

    def remove_layer(self, source: Source) -> int:
        freed = self.used(source)
        for suffix in (".pages", ".data"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._base(source)}{suffix}")
        with contextlib.suppress(OSError):
            os.rmdir(self._base(source).parent)
        return freed

    def free_blocks(self, source: Source, keep: frozenset[int]) -> int:
        return FileLayer(self._base(source), True).free_blocks(keep)

    def used(self, source: Source) -> int:
        total = 0
        for suffix in (".pages", ".data"):
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(f"{self._base(source)}{suffix}").st_blocks * 512
        return total


def _info_bytes(info: Info) -> bytes:
    return (json.dumps(info._asdict(), indent=1, sort_keys=True) + "\n").encode()


def create_store(directory: Path) -> FilesStore:
    """Make an empty store, or open the one that is there."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    with locked(directory / "lock", timeout=LOCK_TIMEOUT, mode=FILE_MODE):
        if not (directory / STORE_FILE).exists():
            foreign = [name for name in os.listdir(directory) if name not in ("lock", "maps", "data", "lost+found")]
            if foreign:
                raise BadStoreError(path=directory, reason=f"it holds other files, such as {foreign[0]!r}")
            for name in ("maps", "data"):
                (directory / name).mkdir(mode=0o750, exist_ok=True)
            facts = {"kind": "snf-archipelago", "version": VERSION, "uuid": str(uuid.uuid4())}
            write_atomically(directory / STORE_FILE, (json.dumps(facts) + "\n").encode(), mode=FILE_MODE)
    return open_store(directory)


def open_store(directory: Path) -> FilesStore:
    """Open a store that exists; raises BadStoreError."""
    try:
        facts = json.loads((directory / STORE_FILE).read_bytes())
    except FileNotFoundError:
        raise BadStoreError(path=directory, reason=f"the file {STORE_FILE} is missing") from None
    except (OSError, ValueError) as error:
        raise BadStoreError(path=directory, reason=f"{STORE_FILE} can't be read: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") != "snf-archipelago" or facts.get("version") != VERSION:
        raise BadStoreError(path=directory, reason=f"its version is not {VERSION}")
    return FilesStore(directory)

# SPDX-License-Identifier: BSD-2-Clause
"""The files store: a directory, also on a file system that several nodes share.

store.json                   what this is: version and identity
lock                         flock(2): the lock of the whole store
WORK.lock                    flock(2): held by work of which there is one at a time, such as gc
maps/NAME/map                the map (maps.py); replaced atomically
maps/NAME/map.old            the map before, until a collection: a second link to a file, for repairs
maps/NAME/info.json          facts: origin, properties, ...
maps/NAME/lock, wanted       the lock of the volume (file_locks.py); the other side of a migration asks for it
data/OWNER/EPOCH.*           a layer (file_layers.py)
content/                     the content blocks (file_contents.py)
"""

# ruff: noqa: ARG002 - `store.py` prescribes the arguments

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from extstorage import maps
from extstorage.errors import (
    AlreadyThereError,
    BadStoreError,
    BrokenError,
    BusyError,
    ForeignPlaceError,
    NoStoreError,
    NoSuchVolumeError,
    TooLargeForStoreError,
    UnreadableStoreError,
)
from extstorage.file_contents import FileContents
from extstorage.file_layers import ContentFile, FileLayers
from extstorage.file_locks import FileLock, FileLocks
from extstorage.file_system import FILE_MODE, FOLDER_MODE, write_all
from extstorage.maps import Source, VolumeMap
from extstorage.names import BLOCK, blocks_of, token
from extstorage.scans import PIECE, Scan, name_of
from extstorage.store import Info, Layer, R, Space, Stored, T, decode_info, encode_info
from ganeti_plugin.files import LockedError, fsync_directory, locked, remove, remove_tree, write_atomically

#: Of the layout described above. Another version is not touched.
VERSION = 2
STORE_FILE = "store.json"
_FOLDERS = ("maps", "data", "content")
_PREVIOUS = "map.old"

#: Bytes of a map or of facts: more than the largest map there can be (`names.LARGEST`).
_MAP_LIMIT = 1 << 30

#: Seconds for the lock of the whole store, whose holders are quick.
LOCK_TIMEOUT = 60.0


class FilesStore:
    """See the module. Make one with `open_store` or `create_store`."""

    atomic_pages = False
    #: The kernel, or the file server, knows who is dead. But one who only asks who has the lock has it for a moment.
    patience = 0.3
    foreign: Callable[[bytes], Layer | None] | None = None

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps = directory / "maps"
        self._layers = FileLayers(directory / "data")
        self._locks = FileLocks(self._maps)
        self._contents = FileContents(directory / "content")

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
        with os.scandir(self._maps) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

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
        fsync_directory(self._maps)

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
                raise self._no_such(name) from None
            raise BrokenError(path=path, reason="the file is missing") from None
        except OSError as error:
            raise BrokenError(path=path, reason=f"it can't be read ({error.strerror})") from None

    def _no_such(self, name: str) -> NoSuchVolumeError:
        return NoSuchVolumeError(what="volume or snapshot", name=name, store=self.title)

    def check_size(self, size: int) -> None:
        """The file system itself is asked, for what it allows depends on how it was made. A layer has whole blocks."""
        probe = self._contents.passing / f"size.{token()}"
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
            new.mkdir(mode=FOLDER_MODE)
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
        contents, folders = self._contents.abandoned(), self._layers.empty_folders()
        with self.locked():
            left = [self._maps / name for name in os.listdir(self._maps) if name.startswith((".new-", ".gone-"))]
            for path in [] if dry_run else left:
                remove_tree(path)
        for path in [] if dry_run else contents:
            remove(path)
        for path in [] if dry_run else folders:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return len(left) + len(contents) + len(folders)

    def loss(self, name: str) -> str:
        return self._locks.loss(name)

    def lock_volume(self, name: str, *, shared: bool = False, patience: float = 0.0) -> FileLock:
        lock = self._locks.take(name, shared, patience)
        if lock is None:
            raise self._no_such(name)
        return lock

    def ask_for_lock(self, name: str) -> None:
        self._locks.ask(name)

    def lock_is_asked_for(self, name: str) -> bool:
        return self._locks.is_asked_for(name)

    def forget_request(self, name: str) -> None:
        self._locks.forget_request(name)

    def layer(self, source: Source, *, writable: bool = False) -> Layer:
        try:
            if source.is_content:
                return ContentFile(self._contents.path(source.owner))
            return self._layers.make(source) if writable else self._layers.open(source)
        except FileNotFoundError as error:
            found = self.foreign(source.owner) if self.foreign and source.is_content else None
            if found is None:
                raise BrokenError(path=str(error.filename), reason="the data of a layer is missing") from None
            return found

    def layers(self, *, begun: bool = False) -> Iterator[Source]:
        return self._layers.sources(begun=begun)

    def remove_layer(self, source: Source, *, patience: float = math.inf) -> int:
        return self._layers.remove(source)

    def free_blocks(self, source: Source, keep: int) -> int:
        return self._layers.free_blocks(source, keep)

    def used(self, source: Source) -> int:
        return self._layers.used(source)

    def stored(self) -> Stored:
        occupied = sum(self.used(source) for source in self.layers())
        contents = 0
        for digest, _ in self.contents():
            contents += 1
            occupied += self.content_used(digest)
        return Stored(occupied, contents)

    def put_content(self, digest: bytes, data: memoryview) -> bool:
        return self._contents.put(digest, data)

    def sync_contents(self) -> None:
        self._contents.sync()

    def contents(self) -> Iterator[tuple[bytes, object]]:
        return self._contents.versions()

    def walk_contents(self) -> Iterator[tuple[bytes, bool]]:
        return ((digest, True) for digest in self._contents.digests())

    def enter_content(self, digest: bytes) -> None:
        """Its file is its entry."""

    def content_used(self, digest: bytes) -> int:
        return self._contents.used(digest)

    def remove_content(self, digest: bytes, version: object) -> int:
        return self._contents.remove(digest, version)


def _write_files(files: Mapping[Path, bytes]) -> None:
    """Durably, all of them together: the first fsync(2) commits what was done for the others, too."""
    descriptors = []
    try:
        for path, data in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            descriptors.append(descriptor)
            os.fchmod(descriptor, FILE_MODE)
            write_all(descriptor, data)
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def create_store(directory: Path) -> FilesStore:
    """Make an empty store, or open the one that is there."""
    directory.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    _check_not_foreign(directory)  # before there is even a lock in it
    with locked(directory / "lock", timeout=LOCK_TIMEOUT, mode=FILE_MODE):
        if not (directory / STORE_FILE).exists():
            _check_not_foreign(directory)
            for name in (*_FOLDERS, "content/new"):
                (directory / name).mkdir(mode=FOLDER_MODE, exist_ok=True)
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
        raise ForeignPlaceError(path=directory, example=repr(foreign[0]))


def open_store(directory: Path) -> FilesStore:
    """Open a store that exists; raises BadStoreError."""
    try:
        facts = json.loads((directory / STORE_FILE).read_bytes())
    except FileNotFoundError:
        raise NoStoreError(path=directory, reason=f"the file {STORE_FILE} is missing") from None
    except OSError as error:
        raise UnreadableStoreError(path=directory, reason=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise BadStoreError(path=directory, reason=f"{STORE_FILE} can't be read: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") != "snf-archipelago" or facts.get("version") != VERSION:
        raise BadStoreError(path=directory, reason=f"its version is not {VERSION}")
    return FilesStore(directory)

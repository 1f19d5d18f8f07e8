# SPDX-License-Identifier: BSD-2-Clause
"""A store in this process's memory, for tests: it can lose what was not synced, as a machine does when it dies.

It can be `atomic`, too: then it keeps its promises as the RADOS store does, and loses nothing.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from extstorage import maps
from extstorage.errors import AlreadyThereError, BrokenError, BusyError, HeldError, NoSuchVolumeError
from extstorage.maps import Source, VolumeMap
from extstorage.names import BLOCK, PAGE
from extstorage.pages import FULL
from extstorage.scans import Scan, scan_of
from extstorage.store import Holder, Info, Layer, R, Space, Stored, T

_NOTHING = bytes(PAGE)


class MemoryLayer:
    """Pages in a dictionary; `_synced` is what the machine's death leaves, with some of the rest."""

    def __init__(self, *, atomic: bool = False) -> None:
        self._atomic = atomic
        self._mutex = threading.Lock()
        self._pages: dict[int, bytes] = {}
        self._synced: dict[int, bytes] = {}
        self._owned: dict[int, int] = {}

    def die(self, chance: Random) -> None:
        """Lose each page that was not synced, or keep it: a kernel writes back as it likes."""
        for page in set() if self._atomic else set(self._pages) | set(self._synced):
            if self._pages.get(page) != self._synced.get(page) and chance.random() < 0.5:
                self._pages[page] = self._synced.get(page, _NOTHING)
        self._synced = dict(self._pages)

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        position = index * BLOCK + offset
        done = 0
        while done < len(buffer):
            page, inside = divmod(position + done, PAGE)
            part = self._pages.get(page, _NOTHING)[inside : inside + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def write(self, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        self._keep(index, pages)
        position = index * BLOCK + offset
        done = 0
        while done < len(data):
            page, inside = divmod(position + done, PAGE)
            part = bytes(data[done : done + PAGE - inside])
            with self._mutex:
                old = self._pages.get(page, _NOTHING)
                self._pages[page] = old[:inside] + part + old[inside + len(part) :]
            done += len(part)

    def _keep(self, index: int, pages: int | None) -> None:
        if not self._atomic:
            return
        if pages is None:
            self._owned.setdefault(index, 0)
        else:
            self._owned[index] = pages

    def punch(self, index: int, offset: int, length: int, pages: int | None) -> None:
        self._keep(index, pages)
        first = (index * BLOCK + offset) // PAGE
        for page in range(first, first + length // PAGE):
            self._pages.pop(page, None)

    def holes(self, index: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        position, end = index * BLOCK + offset, index * BLOCK + offset + length
        while position < end:
            page = position // PAGE
            step = min(end, (page + 1) * PAGE) - position
            yield step, page not in self._pages
            position += step

    def prefetch(self, index: int, offset: int, length: int) -> None:
        """Memory needs none."""

    def plain_object(self, index: int) -> str:
        return ""

    def begin_sync(self) -> None:
        """There is no disk."""

    def sync(self) -> None:
        self._synced = dict(self._pages)

    def load_pages(self, index: int) -> int:
        return self._owned.get(index, 0)

    def present(self) -> dict[int, int | None]:
        return dict.fromkeys(self._owned) if self._atomic else dict(self._owned)

    def blocks(self) -> Iterator[tuple[int, int | None]]:
        return iter(self.present().items())

    def save_pages(self, pages: Mapping[int, int]) -> None:
        assert not self._atomic
        self._owned.update(pages)

    def free_blocks(self, keep: int) -> int:
        gone = [page for page in self._pages if not keep >> page * PAGE // BLOCK & 1]
        for page in gone:
            del self._pages[page]
        self._synced = dict(self._pages)
        return len(gone) * PAGE

    def used(self) -> int:
        return len(self._pages) * PAGE


class MemoryContent(MemoryLayer):
    """One content block, whatever index it is read at."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        super().write(0, 0, memoryview(data), None)

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        super().readinto(0, offset, buffer)

    def holes(self, index: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return super().holes(0, offset, length)

    def load_pages(self, index: int) -> int:
        return FULL


class MemoryLock:
    """Exclusive or shared; the record stays when it is released."""

    def __init__(self, store: MemoryStore, name: str, shared: bool) -> None:
        self._store = store
        self._name = name
        self.shared = shared
        self.released = False

    def holder(self) -> Holder | None:
        return self._store.holders.get(self._name)

    def sure_until(self) -> float:
        return math.inf

    def record(self, holder: Holder) -> None:
        self._store.holders[self._name] = holder

    def release(self) -> None:
        self.released = True


class MemoryStore:
    """See the module."""

    patience = 0.0
    foreign: Callable[[bytes], Layer | None] | None = None

    def __init__(self, *, atomic: bool = False) -> None:
        self.atomic_pages = atomic
        self._contents: dict[bytes, tuple[MemoryContent, int]] = {}
        self._touches = 0
        self.holders: dict[str, Holder] = {}
        self._maps: dict[str, bytes] = {}
        self._infos: dict[str, Info] = {}
        self._layers: dict[Source, MemoryLayer] = {}
        self._locks: dict[str, list[MemoryLock]] = {}
        self._requests: set[str] = set()
        self._works: set[str] = set()
        self._mutex = threading.Lock()
        self._locking = threading.Lock()

    def die(self, chance: Random) -> None:
        """The machine dies: locks and unsynced data go."""
        self.drop_locks()
        for layer in self._layers.values():
            layer.die(chance)

    def drop_locks(self) -> None:
        """The processes that hold locks die."""
        self._locks.clear()

    @property
    def title(self) -> str:
        return "memory"

    def close(self) -> None:
        """What is in memory is there for the next who opens it."""

    def space(self) -> Space:
        return Space(1 << 40, (1 << 40) - sum(layer.used() for layer in self._layers.values()))

    def names(self) -> list[str]:
        return sorted(self._maps)

    def possible_names(self) -> list[str]:
        return self.names()

    def versions(self) -> dict[str, object]:
        return {name: self.map_version(name) for name in self.names()}

    def each(self, work: Callable[[T], R], arguments: Sequence[T]) -> Iterator[R]:
        return map(work, arguments)

    def exists(self, name: str) -> bool:
        return name in self._maps

    def read_map(self, name: str) -> VolumeMap:
        return maps.decode(self._bytes(name), name)

    def _bytes(self, name: str) -> bytes:
        try:
            return self._maps[name]
        except KeyError:
            raise NoSuchVolumeError(what="volume or snapshot", name=name, store=self.title) from None

    def scan_map(self, name: str, look: Callable[[Scan], R]) -> R:
        return look(scan_of(self._bytes(name), name))

    def read_heads(self, name: str) -> VolumeMap:
        return self.read_map(name)

    def write_map(self, name: str, volume_map: VolumeMap, packed: bytes = b"") -> None:
        self._maps[name] = maps.encode(volume_map, packed)

    def settle_map(self, name: str) -> None:
        """Nothing here survives, or everything."""

    def previous_map(self, name: str) -> VolumeMap | None:
        return None

    def forget_previous_maps(self) -> None:
        """There are none: nothing gets lost in memory."""

    def map_version(self, name: str) -> object:
        return self._maps.get(name)

    def read_info(self, name: str) -> Info:
        self._bytes(name)
        return self._infos[name]

    def write_info(self, name: str, info: Info) -> None:
        self._infos[name] = info

    def check_size(self, size: int) -> None:
        """Of blocks there may be any number."""

    def create(self, name: str, volume_map: VolumeMap, info: Info) -> None:
        self._create(name, maps.encode(volume_map), info)

    def create_copy(self, name: str, origin: str, head: VolumeMap, info: Info) -> None:
        self._create(name, maps.copied(self._bytes(origin), head, origin), info)

    def _create(self, name: str, data: bytes, info: Info) -> None:
        if name in self._maps:
            raise AlreadyThereError(name=name, store=self.title, what="volume, snapshot or image")
        self._maps[name] = data
        self._infos[name] = info

    def remove(self, name: str) -> None:
        self._maps.pop(name, None)
        self._infos.pop(name, None)
        self.holders.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        self._maps[new] = self._maps.pop(old)
        self._infos[new] = self._infos.pop(old)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._mutex:
            yield

    @contextlib.contextmanager
    def only_one(self, work: str) -> Iterator[None]:
        if work in self._works:
            raise BusyError(work=work, store=self.title)
        self._works.add(work)
        try:
            yield
        finally:
            self._works.remove(work)

    def tidy(self, *, dry_run: bool = False) -> int:
        return 0

    def loss(self, name: str) -> str:
        last = self.holders.get(name)
        return last.loss if last else ""

    def lock_volume(self, name: str, *, shared: bool = False, patience: float = 0.0) -> MemoryLock:
        self._bytes(name)
        with self._locking:
            held = [lock for lock in self._locks.get(name, []) if not lock.released]
            if held and not (shared and all(lock.shared for lock in held)):
                raise HeldError(name=name, holder=self.holders.get(name) or "an unknown holder")
            lock = MemoryLock(self, name, shared)
            self._locks[name] = [*held, lock]
            return lock

    def ask_for_lock(self, name: str) -> None:
        self._requests.add(name)

    def lock_is_asked_for(self, name: str) -> bool:
        return name in self._requests

    def forget_request(self, name: str) -> None:
        self._requests.discard(name)

    def layer(self, source: Source, *, writable: bool = False) -> Layer:
        if source.is_content:
            return self._content(source)
        if writable:
            return self._layers.setdefault(source, MemoryLayer(atomic=self.atomic_pages))
        try:
            return self._layers[source]
        except KeyError:
            raise BrokenError(path=str(source), reason="the data of a layer is missing") from None

    def _content(self, source: Source) -> Layer:
        try:
            return self._contents[source.owner][0]
        except KeyError:
            found = self.foreign(source.owner) if self.foreign else None
            if found is None:
                raise BrokenError(path=source.owner.hex(), reason="the content block is missing") from None
            return found

    def layers(self, *, begun: bool = False) -> list[Source]:
        return sorted(self._layers)

    def remove_layer(self, source: Source, *, patience: float = math.inf) -> int:
        return self._layers.pop(source, MemoryLayer()).used()

    def free_blocks(self, source: Source, keep: int) -> int:
        return self._layers[source].free_blocks(keep)

    def used(self, source: Source) -> int:
        return self._layers[source].used() if source in self._layers else 0

    def stored(self) -> Stored:
        contents = [content.used() for content, _ in self._contents.values()]
        return Stored(sum(layer.used() for layer in self._layers.values()) + sum(contents), len(contents))

    def put_content(self, digest: bytes, data: memoryview) -> bool:
        with self._mutex:
            self._touches += 1
            old = self._contents.get(digest)
            self._contents[digest] = (old[0] if old else MemoryContent(bytes(data)), self._touches)
        return old is None

    def sync_contents(self) -> None:
        """Nothing here survives this process."""

    def contents(self) -> list[tuple[bytes, object]]:
        return [(digest, version) for digest, (_, version) in sorted(self._contents.items())]

    def walk_contents(self) -> Iterator[tuple[bytes, bool]]:
        return ((digest, True) for digest in list(self._contents))

    def enter_content(self, digest: bytes) -> None:
        """None is ever forgotten."""

    def content_used(self, digest: bytes) -> int:
        return self._contents[digest][0].used() if digest in self._contents else 0

    def remove_content(self, digest: bytes, version: object) -> int:
        with self._mutex:
            if digest not in self._contents or self._contents[digest][1] != version:
                return 0
            return self._contents.pop(digest)[0].used()

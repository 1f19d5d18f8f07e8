# SPDX-License-Identifier: BSD-2-Clause
"""What a store must do: the interface between volumes and the place where their bytes live.

A store keeps, for each name, a map, a record of facts and a lock; and for each layer (owner, epoch), pages of data and
the bitmap that says which pages are there. The rules that `volume.py` relies on:

- `write_map`, `create` and `create_copy` are atomic and durable when they return;
- data of a layer survives the death of this process once `write` returned, and the death of the machine once `sync`
  returned; a bitmap saved by `save_pages` is durable when that returns;
- a store with `atomic_pages` keeps the bitmap with the data, in one atomic and durable operation;
- a lock dies with the process that holds it, and with its machine. Who takes over from a holder that only seems dead
  has fenced it first: it can't write any more.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from extstorage.errors import BrokenError
from extstorage.maps import Source, VolumeMap
from extstorage.scans import Scan

T = TypeVar("T")
R = TypeVar("R")


class Info(NamedTuple):
    """The facts kept beside a map."""

    created: float
    origin: str = ""
    cname: str = ""
    metadata: str = ""
    image: bool = False
    properties: Mapping[str, str] = {}
    #: Of an image: whether new volumes may be cloned from it.
    shared: bool = True


#: The latest moment that calendars know.
_LATEST = 253402300800


def encode_info(info: Info) -> bytes:
    facts = info._asdict()
    return (json.dumps({"crc32": _checksum(facts), "facts": facts}, indent=1, sort_keys=True) + "\n").encode()


def _checksum(facts: object) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def decode_info(data: bytes, path: str | Path) -> Info:
    """Read the facts of a volume. Raises BrokenError on anything that `encode_info` would not have written."""
    try:
        found = json.loads(data)
        right = found["crc32"] == _checksum(found["facts"])
        info = Info(**found["facts"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BrokenError(path=path, reason=f"the facts can't be read ({error})") from None
    if not right:
        raise BrokenError(path=path, reason="the checksum of the facts is wrong")
    if not _fits(info._asdict()):
        raise BrokenError(path=path, reason="the facts are not what they should be")
    return info


def _fits(facts: Mapping[str, object]) -> bool:
    created, properties = facts["created"], facts["properties"]
    if not isinstance(created, int | float) or not 0 <= created < _LATEST:
        return False
    if not isinstance(facts["image"], bool) or not isinstance(facts["shared"], bool):
        return False
    texts = [facts["origin"], facts["cname"], facts["metadata"]]
    return isinstance(properties, dict) and all(isinstance(text, str) for text in (*texts, *properties.values()))


class Holder(NamedTuple):
    """Who has, or last had, a volume's lock. `token` changes each time that the lock changes hands."""

    token: str
    node: str
    boot: str
    pid: int
    since: float
    #: Whether it gave the lock up with all that it had acknowledged in the store. Of no meaning with `atomic_pages`.
    yielded: bool = False
    #: Why what was acknowledged may be lost (a flush failed); kept by later holders, until a repair.
    loss: str = ""

    def __str__(self) -> str:
        return f"node {self.node} (process {self.pid})" if self.node else "an unknown holder"


class Space(NamedTuple):
    """The bytes that a store could hold, and those that it can still take. (0, 0): it can't tell."""

    total: int
    free: int

    @property
    def is_known(self) -> bool:
        return self.total > 0


class Stored(NamedTuple):
    """What all layers and content blocks occupy, and how many content blocks there are."""

    bytes: int
    contents: int


class Layer(Protocol):
    """What one owner wrote in one epoch, or one content block. Blocks are named by index, offsets are within the block.

    `pages`, where it is given to a change, is what the layer has of the block afterwards: for stores that keep it with
    the data. None leaves it as it is.
    """

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        """Fill the buffer; what was never written reads as zeros."""

    def write(self, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        """Store the data, all of which lies in the block. Raises OSError; then some of it may be there."""

    def punch(self, index: int, offset: int, length: int, pages: int | None) -> None:
        """Make a range read as zeros and give its space back, if the store can."""

    def holes(self, index: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """The range as runs (length, whether it is a hole)."""

    def prefetch(self, index: int, offset: int, length: int) -> None:
        """Have a range at hand that will be read soon, if there is a cache to fill."""

    def plain_object(self, index: int) -> str:
        """The object in RADOS, in the store's own place, that is the block byte for byte; "" if there is none."""

    def begin_sync(self) -> None:
        """Have what was written be on its way, so that the next `sync` has little to wait for. It promises nothing."""

    def sync(self) -> None:
        """Make what was written durable. Raises OSError; after that, nobody knows what of it is there."""

    def load_pages(self, index: int) -> int:
        """The pages of one block that the layer has, as saved."""

    def present(self) -> dict[int, int | None]:
        """The blocks that the layer has anything of, with their pages; None where only `load_pages` can tell.

        Only for who has the volume: nobody may change the layer meanwhile.
        """

    def blocks(self) -> Iterator[tuple[int, int | None]]:
        """The same for everybody, and one after the other: there may be millions."""

    def save_pages(self, pages: Mapping[int, int]) -> None:
        """Keep the bitmaps of these blocks, durably, in place of those that were saved. Not with `atomic_pages`."""


class VolumeLock(Protocol):
    """An exclusive or shared lock that is held."""

    def holder(self) -> Holder | None:
        """The record as it stands now: ours, unless somebody took the volume over."""

    def sure_until(self) -> float:
        """Until when nobody can have taken the volume over, in seconds of CLOCK_BOOTTIME; 0 if somebody may have."""

    def record(self, holder: Holder) -> None:
        """Say who has the volume: for messages, and for who has it next."""

    def release(self) -> None:
        """Let go of it; once more does no harm."""


class Store(Protocol):
    """Where volumes live."""

    #: Whether a layer's bitmap changes with its data, atomically.
    atomic_pages: bool

    #: Seconds for which a holder that died without a word looks alive here, or one who goes at once is in the way.
    patience: float

    #: Where content blocks are that this store does not have: in stores of Pithos, read in place.
    foreign: Callable[[bytes], Layer | None] | None

    @property
    def title(self) -> str:
        """For messages: what and where it is."""

    def close(self) -> None:
        """To be called by who opened it, when nothing of it is used any more."""

    def space(self) -> Space:
        """How much the place where it is can hold."""

    def names(self) -> list[str]:
        """Volumes, snapshots and images, in alphabetical order."""

    def possible_names(self) -> list[str]:
        """The same, and those that one who died left behind, or that are just coming or going: cheap."""

    def versions(self) -> dict[str, object]:
        """The names, each with what `map_version` says of it."""

    def each(self, work: Callable[[T], R], arguments: Sequence[T]) -> Iterator[R]:
        """Call for each, in order; several at a time where that is faster."""

    def exists(self, name: str) -> bool:
        """Whether there is a volume, snapshot or image of that name, be it broken."""

    def read_map(self, name: str) -> VolumeMap:
        """Raises NoSuchVolumeError, and BrokenError if it is damaged; so does whatever reads a map or facts."""

    def scan_map(self, name: str, look: Callable[[Scan], R]) -> R:
        """What `look` says of the map, which it reads piece by piece. It may be called again: a map may be replaced."""

    def read_heads(self, name: str) -> VolumeMap:
        """The map without its entries: cheap."""

    def write_map(self, name: str, volume_map: VolumeMap, packed: bytes = b"") -> None:
        """`packed` are the map's entries as `packing.py` packs them, if they are at hand."""

    def settle_map(self, name: str) -> None:
        """Have the map that is there now survive a power loss, and its name, though who wrote it may have failed."""

    def previous_map(self, name: str) -> VolumeMap | None:
        """The map before the last `write_map`, for repairs; None where none is kept, or after a collection."""

    def forget_previous_maps(self) -> None:
        """To be called before a collection frees what only they name, and after it has read the maps."""

    def map_version(self, name: str) -> object:
        """A value that differs after `write_map`."""

    def read_info(self, name: str) -> Info:
        """The facts beside the map."""

    def write_info(self, name: str, info: Info) -> None:
        """Replace them, atomically and durably."""

    def check_size(self, size: int) -> None:
        """Raises TooLargeForStoreError if no volume here can be as large."""

    def create(self, name: str, volume_map: VolumeMap, info: Info) -> None:
        """Needs the store's lock. Raises AlreadyThereError."""

    def create_copy(self, name: str, origin: str, head: VolumeMap, info: Info) -> None:
        """Create a map with all that the origin's says of blocks; of `head`, the sources and entries don't count.

        Needs the store's lock. Raises AlreadyThereError, and BrokenError if what is read of the origin is damaged.
        """

    def remove(self, name: str) -> None:
        """Remove map, facts and lock, but no layer. Needs the store's lock; nothing happens if it is not there."""

    def rename(self, old: str, new: str) -> None:
        """Needs the store's lock, and that of `old`; the caller has made sure that there is no `new`."""

    def locked(self) -> AbstractContextManager[None]:
        """The lock of the whole store: held while names come and go."""

    def only_one(self, work: str) -> AbstractContextManager[None]:
        """Held during work of which there is one at a time, such as a collection; raises BusyError at once."""

    def tidy(self, *, dry_run: bool = False) -> int:
        """Remove what killed creations and removals left; answers with how many there were. Takes the store's lock."""

    def loss(self, name: str) -> str:
        """What the holder's record says of that (`Holder.loss`), without the lock."""

    def lock_volume(self, name: str, *, shared: bool = False, patience: float = 0.0) -> VolumeLock:
        """Raises HeldError when somebody else has it: at once if they are known to live, else after `patience`."""

    def ask_for_lock(self, name: str) -> None:
        """Ask a holder that shares the volume to flush and yield."""

    def lock_is_asked_for(self, name: str) -> bool:
        """Whether somebody did, and nobody has had it since."""

    def forget_request(self, name: str) -> None:
        """To be called by who got the lock after it had asked."""

    def layer(self, source: Source, *, writable: bool = False) -> Layer:
        """Raises BrokenError when there is none, at once or at its first use."""

    def layers(self, *, begun: bool = False) -> Iterable[Source]:
        """All layers that there are; a layer is there from its first write on.

        With `begun`, also those of which anything is there: they are being made, or who made them failed.
        """

    def remove_layer(self, source: Source, *, patience: float = math.inf) -> int:
        """Answers with the bytes freed. After `patience` seconds it may stop: the rest is left to the collection."""

    def free_blocks(self, source: Source, keep: int) -> int:
        """Give back the blocks of a frozen layer that are not in the bitmap `keep`; answers with the bytes freed.

        Done again, it frees nothing and costs little.
        """

    def used(self, source: Source) -> int:
        """The bytes that a layer occupies."""

    def stored(self) -> Stored:
        """Of very many blocks, some may be asked for, and the others taken to be alike."""

    def put_content(self, digest: bytes, data: memoryview) -> bool:
        """Have a content block; answers whether it is new. It is durable after `sync_contents`.

        `data` may end behind the last byte that is not zero. A block that is there is touched: a collection that began
        earlier leaves it.
        """

    def sync_contents(self) -> None:
        """Everything that `put_content` took in this process is there and durable afterwards."""

    def contents(self) -> Iterable[tuple[bytes, object]]:
        """All content blocks: (digest, a value that changes when it is touched)."""

    def walk_contents(self) -> Iterator[tuple[bytes, bool]]:
        """All content blocks that are there, by a walk over all that is stored, and whether `contents` tells of them.

        Cheaper for each than `contents`; one may be told twice.
        """

    def enter_content(self, digest: bytes) -> None:
        """Have `contents` tell of a block that it forgot: what was forgotten is never collected."""

    def content_used(self, digest: bytes) -> int:
        """The bytes that a content block occupies; 0 when it is not there."""

    def remove_content(self, digest: bytes, version: object) -> int:
        """Remove a content block unless it was touched since; answers with the bytes freed."""

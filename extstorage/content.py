# SPDX-License-Identifier: BSD-2-Clause
"""Content addressing: what a block is called, what a whole image is called, and how many blocks get their names fast.

The names are those of Pithos, so that an image of ours is a file of Pithos and the other way round: a block's is the
SHA-256 of its 4 MiB without the zeros at its end, an image's the root of the Merkle tree over its blocks' names.

`Pipeline` is what everything that needs names shares. The calling thread reads, others hash and store on all
processors (hashlib and the system calls let go of Python's lock); results come in order; a fixed set of buffers
bounds the memory.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self, TypeVar

from extstorage.maps import DEPTH, DIGEST, VolumeMap
from extstorage.names import BLOCK, PAGE

#: The name of a block of zeros. It is never stored: it is a hole.
NOTHING = hashlib.sha256().digest()

#: Threads that wait for the store, besides those that hash: when it is read, and when blocks are put, of which it may
#: make copies meanwhile.
_WAITING = 4
_PUTTING = 8

_CHUNK = 64 << 10
_ZEROS = bytes(_CHUNK)

#: Answers with a buffer of a block's size, with anything in it.
Take = Callable[[], memoryview]

T = TypeVar("T")
R = TypeVar("R")


def length_of(data: memoryview) -> int:
    """How long the data is without the zeros at its end.

    By chunks, since bytes.rstrip needs 10 ms for a block of zeros and lets no other thread run meanwhile.
    """
    end = len(data)
    while end:
        start = max(0, end - _CHUNK)
        chunk = bytes(data[start:end])
        if chunk[-1] or chunk != _ZEROS[: end - start]:
            return start + len(chunk.rstrip(b"\0"))
        end = start
    return 0


def digest_of(data: memoryview) -> bytes:
    """The name of a block."""
    return hashlib.sha256(data[: length_of(data)]).digest()


def root_of(digests: Iterable[bytes | None]) -> bytes:
    """The name of a whole image: the Merkle root over its blocks' names, where None is a hole."""
    # The roots of the whole subtrees to the left, with their heights, which fall: of millions of names, a few are kept.
    roots: list[tuple[int, bytes]] = []
    for digest in digests:
        _append(roots, 0, NOTHING if digest is None else digest)
    filler, height = bytes(DIGEST), 0
    while len(roots) > 1:
        while height < roots[-1][0]:
            filler, height = hashlib.sha256(filler + filler).digest(), height + 1
        _append(roots, height, filler)
    return roots[0][1] if roots else NOTHING


def _append(roots: list[tuple[int, bytes]], height: int, root: bytes) -> None:
    while roots and roots[-1][0] == height:
        root = hashlib.sha256(roots.pop()[1] + root).digest()
        height += 1
    roots.append((height, root))


def root_of_map(volume_map: VolumeMap) -> bytes | None:
    """The same for a map; None when it has blocks that are not named by their content."""
    second = volume_map.entries[1::DEPTH]
    if volume_map.sources or second.count(0) != len(second):
        return None
    blocks = map(volume_map.layers, range(volume_map.blocks))
    return root_of(layers[0].owner if layers else None for layers in blocks)


#: How many blocks a source may have taken buffers for and not yet yielded.
READING = 4


class Block(NamedTuple):
    """Block `number` of a disk, as read: `length` bytes of `buffer`, which came from `Pipeline.take`."""

    number: int
    buffer: memoryview
    length: int


class Named(NamedTuple):
    """A block with its name, which is None for a hole. `data` goes on to the end of the last page that is not zero."""

    number: int
    digest: bytes | None
    data: memoryview
    buffer: memoryview


def _named(block: Block) -> Named:
    length = length_of(block.buffer[: block.length])
    if not length:
        return Named(block.number, None, block.buffer[:0], block.buffer)
    digest = hashlib.sha256(block.buffer[:length]).digest()
    whole = -(-length // PAGE) * PAGE
    if block.length < whole:
        block.buffer[block.length : whole] = bytes(whole - block.length)
    return Named(block.number, digest, block.buffer[:whole], block.buffer)


class Pipeline:
    """Buffers and threads for as long as a piece of work lasts: a context manager."""

    def __init__(self, batch: int, ahead: int) -> None:
        self._batch = batch
        self._ahead = ahead
        # One batch is being stored, one published and one collected, `ahead` blocks are being hashed, and READING are
        # being read. Each buffer has pages of its own, so that a store can write it without a copy (O_DIRECT).
        self._free = [memoryview(mmap.mmap(-1, BLOCK)) for _ in range(3 * batch + ahead + READING)]
        self._pool = ThreadPoolExecutor((os.cpu_count() or 1) + _WAITING, "content")
        # Others, so that a slow store keeps no block from being hashed meanwhile.
        self._putters = ThreadPoolExecutor(_PUTTING, "putter")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for pool in (self._pool, self._putters):
            pool.shutdown(cancel_futures=True)

    def take(self) -> memoryview:
        """A buffer of a block's size, with anything in it."""
        return self._free.pop()

    def ordered(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What `work` makes of each item, in the items' order; a few are worked on at a time."""
        running: deque[Future[R]] = deque()
        for item in items:
            running.append(self._pool.submit(work, item))
            if len(running) >= self._ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def absorb(
        self,
        blocks: Iterable[Block],
        publish: Callable[[Sequence[Named]], None],
        put: Callable[[bytes, memoryview], object],
    ) -> Iterator[Named]:
        """Name blocks, tell `publish` some names at a time, and only then `put` those blocks; yields what is stored.

        A block is not put twice in a run. The buffer of what was yielded is used again afterwards.
        """
        seen: set[bytes] = set()
        batch: list[Named] = []
        published: list[Named] = []
        publishing = self._putters.submit(publish, published)
        storing: list[tuple[Named, Future[object] | None]] = []
        for named in self.ordered(_named, blocks):
            batch.append(named)
            if len(batch) == self._batch:
                yield from self._stored(storing)
                publishing.result()
                publishing = self._putters.submit(publish, batch)
                storing = self._start(published, seen, put)
                published, batch = batch, []
        for last in (published, batch):
            yield from self._stored(storing)
            publishing.result()
            if last is published:
                publishing = self._putters.submit(publish, batch)
            storing = self._start(last, seen, put)
        yield from self._stored(storing)

    def _start(
        self, batch: Sequence[Named], seen: set[bytes], put: Callable[[bytes, memoryview], object]
    ) -> list[tuple[Named, Future[object] | None]]:
        started: list[tuple[Named, Future[object] | None]] = []
        for named in batch:
            future = None
            if named.digest is not None and named.digest not in seen:
                seen.add(named.digest)
                future = self._putters.submit(put, named.digest, named.data)
            started.append((named, future))
        return started

    def _stored(self, storing: Sequence[tuple[Named, Future[object] | None]]) -> Iterator[Named]:
        for _, future in storing:
            if future is not None:
                future.result()
        # Nothing is being put while the caller has its turn.
        for named, _ in storing:
            yield named
            self._free.append(named.buffer)

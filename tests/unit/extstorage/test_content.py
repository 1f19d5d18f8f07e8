# SPDX-License-Identifier: BSD-2-Clause
"""Names of blocks and images, against another way to compute them; and the order in which the pipeline does things."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extstorage.content import NOTHING, READING, Block, Named, Pipeline, digest_of, length_of, root_of
from extstorage.names import BLOCK, PAGE


@given(data=st.binary(max_size=200), zeros=st.sampled_from([0, 1, 4096, 65535, 65536, 65537, 200_000]))
def test_a_block_is_named_without_the_zeros_at_its_end(data: bytes, zeros: int) -> None:
    block = memoryview(data + bytes(zeros))
    assert length_of(block) == len(data.rstrip(b"\0"))
    assert digest_of(block) == hashlib.sha256(data.rstrip(b"\0")).digest()


def test_zeros_are_called_nothing() -> None:
    known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert NOTHING.hex() == digest_of(memoryview(bytes(BLOCK))).hex() == root_of([]).hex() == known


def merkle(digests: Sequence[bytes]) -> bytes:
    """As Pithos' hashmap.py computes it, recursively and not level by level."""
    if len(digests) == 1:
        return digests[0]
    half = 1
    while half * 2 < len(digests):
        half *= 2
    padded = [*digests, *[bytes(32)] * (2 * half - len(digests))]
    return hashlib.sha256(merkle(padded[:half]) + merkle(padded[half:])).digest()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 69])
def test_the_name_of_an_image_is_the_merkle_root(count: int) -> None:
    digests = [hashlib.sha256(bytes([n])).digest() for n in range(count)]
    assert root_of(digests) == merkle(digests)
    assert root_of([None, *digests[1:]]) == merkle([NOTHING, *digests[1:]])


class Sink:
    """Checks the order: a name is published before its block is put, a block is yielded after it was put."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.names: set[bytes] = set()
        self.put_blocks: dict[bytes, bytes] = {}
        self.puts = 0

    def publish(self, batch: Sequence[Named]) -> None:
        self.published += [named.number for named in batch]
        self.names |= {named.digest for named in batch if named.digest}

    def put(self, digest: bytes, data: memoryview) -> bool:
        assert digest in self.names
        self.puts += 1
        self.put_blocks[digest] = bytes(data)
        return True


def contents(number: int) -> bytes:
    chance = random.Random(number)
    return chance.randbytes(chance.choice((1, PAGE, 70_001))) + bytes(chance.choice((0, 1, 5000)))


def test_the_pipeline_publishes_first_and_keeps_order_and_buffers() -> None:
    sink = Sink()
    indexes = list(range(0, 400, 2))
    kinds = {index: index // 3 % 50 for index in indexes}

    with Pipeline(4, 3) as pipeline:

        def blocks() -> Iterator[Block]:
            for index in indexes:
                buffer = pipeline.take()
                data = contents(kinds[index]) if kinds[index] else bytes(3 * PAGE)
                buffer[:] = b"\xff" * BLOCK if index < 20 else bytes(BLOCK)
                buffer[: len(data)] = data
                yield Block(index, buffer, len(data))

        seen = []
        for named in pipeline.absorb(blocks(), sink.publish, sink.put):
            expected = contents(kinds[named.number]).rstrip(b"\0") if kinds[named.number] else b""
            assert (named.digest or NOTHING) == hashlib.sha256(expected).digest()
            if named.digest:
                stored = sink.put_blocks[named.digest]
                assert stored.rstrip(b"\0") == expected
                assert len(stored) % PAGE == 0
            seen.append(named.number)
    assert seen == sink.published == indexes
    assert sink.puts == len(sink.put_blocks) == len(set(kinds.values()) - {0})


def test_a_block_that_cannot_be_put_ends_the_work() -> None:
    def put(_digest: bytes, _data: memoryview) -> bool:
        raise OSError(28, "No space left on device")

    with Pipeline(2, 1) as pipeline:

        def blocks() -> Iterator[Block]:
            for index in range(50):
                buffer = pipeline.take()
                buffer[:5] = index.to_bytes(4, "big") + b"x"
                yield Block(index, buffer, 5)

        with pytest.raises(OSError, match="space"):
            list(pipeline.absorb(blocks(), lambda _batch: None, put))


def test_a_source_that_reads_several_blocks_at_a_time_never_lacks_a_buffer() -> None:
    """As a qcow2 image is read."""
    sink = Sink()
    with Pipeline(4, 3) as pipeline:

        def blocks() -> Iterator[Block]:
            waiting: list[Block] = []
            for number in range(100):
                waiting.append(Block(number, pipeline.take(), PAGE))
                waiting[-1].buffer[:PAGE] = bytes([number + 1]) * PAGE
                if len(waiting) == READING:
                    yield waiting.pop(0)
            yield from waiting

        stored = [named.number for named in pipeline.absorb(blocks(), sink.publish, sink.put)]
    assert stored == sink.published == list(range(100))


def test_a_slow_store_keeps_no_block_from_being_hashed() -> None:
    batch, is_hashed = (os.cpu_count() or 1) + 8, threading.Event()
    waited: list[bool] = []

    def put(_digest: bytes, _data: memoryview) -> bool:
        waited.append(is_hashed.wait(5))
        return True

    with Pipeline(batch, 1) as pipeline:

        def blocks() -> Iterator[Block]:
            for number in range(3 * batch):
                if number == 3 * batch - 1:
                    is_hashed.set()
                buffer = pipeline.take()
                buffer[:4] = (number + 1).to_bytes(4, "big")
                yield Block(number, buffer, 4)

        assert len(list(pipeline.absorb(blocks(), lambda _batch: None, put))) == 3 * batch
    assert all(waited)

# SPDX-License-Identifier: BSD-2-Clause
"""Maps: what is written is read back, what is damaged is refused, and depth stays bounded."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from extstorage import maps
from extstorage.errors import BrokenError
from extstorage.maps import DEPTH, DIGEST, Source
from extstorage.names import BLOCK, SECTOR
from extstorage.pages import FULL, full_mask, mask_of, runs

OWNER = bytes(range(16))


def deep_map() -> maps.VolumeMap:
    found = maps.empty(3 * BLOCK + SECTOR, OWNER)
    for depth in range(DEPTH):
        found = maps.freeze(found, {0: 1, 1: 1 << depth})
    return found


def test_what_is_written_is_read_back() -> None:
    for one in (maps.empty(1 << 40, OWNER), deep_map(), maps.as_snapshot(deep_map())):
        assert maps.decode(maps.encode(one), "x") == one


def test_a_map_of_1_tib_without_data_is_tiny() -> None:
    assert len(maps.encode(maps.empty(1 << 40, OWNER))) < 100


def any_map(chance: random.Random) -> maps.VolumeMap:
    """What a life of snapshots, clones, growing and hashing makes of a map."""
    found = maps.empty(chance.randint(1, 6 * BLOCK // SECTOR) * SECTOR, OWNER)
    for _ in range(chance.randrange(8)):
        kind = chance.randrange(4)
        indexes = chance.sample(range(found.blocks), chance.randint(1, found.blocks))
        if kind == 0:
            owned = {index: chance.choice((1, FULL)) for index in indexes}
            found = maps.freeze(found, {i: FULL if found.depth(i) == DEPTH else owned[i] for i in indexes})
        elif kind == 1:
            found = maps.grow(found, found.size + chance.randint(1, 3 * BLOCK // SECTOR) * SECTOR)
        elif kind == 2:
            found = maps.clone(maps.as_snapshot(found), found.size + chance.choice((0, BLOCK)), chance.randbytes(16))
        else:
            found = maps.with_content(found, {index: digest_of(chance.randrange(9)) for index in indexes})
    return found


@given(seed=st.integers(0, 1 << 32))
def test_any_map_is_read_back_and_what_follows_its_entries_is_holes(seed: int) -> None:
    found = any_map(random.Random(seed))
    assert maps.decode(maps.encode(found), "x") == found
    full = found._replace(entries=found.entries + array("I", bytes(16 * found.blocks - 4 * len(found.entries))))
    assert [full.layers(index) for index in range(found.blocks)] == [found.layers(i) for i in range(found.blocks)]
    for index in range(found.blocks):
        assert found.depth(index) == full.depth(index) == len(found.layers(index))


@given(seed=st.integers(0, 1 << 32), more=st.integers(0, 3 * BLOCK // SECTOR))
def test_a_copy_with_a_new_head_is_what_encoding_it_makes(seed: int, more: int) -> None:
    old = any_map(random.Random(seed))
    for new in (
        maps.clone(maps.as_snapshot(old), old.size + more * SECTOR, bytes(16)),
        maps.grow(old, old.size + more * SECTOR),
        maps.as_snapshot(old),
    ):
        data = maps.encode(new)
        assert maps.copied(maps.encode(old), new, "x") == data
        assert maps.new_header(maps.encode(old)[: maps.HEADER], new, "x") == data[: maps.HEADER]
        assert maps.decode(data, "x").layers(0) == old.layers(0)
        assert [new.layers(index) for index in range(old.blocks, new.blocks)] == [()] * (new.blocks - old.blocks)


@given(seed=st.integers(0, 1 << 32))
def test_a_damaged_map_is_not_copied(seed: int) -> None:
    chance = random.Random(seed)
    old = any_map(chance)
    data = bytearray(maps.encode(old))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    with pytest.raises(BrokenError):
        maps.copied(bytes(data), old, "x")


def test_a_copy_can_not_be_smaller() -> None:
    with pytest.raises(BrokenError, match="4 blocks, more than"):
        maps.copied(maps.encode(maps.freeze(maps.empty(4 * BLOCK, OWNER), {3: 1})), maps.empty(BLOCK, OWNER), "x")


def test_entries_never_unpack_to_more_than_the_volume_has() -> None:
    """A map of 64 TiB that packs to little must not pass for one of 4 MiB."""
    bomb = maps.encode(maps.empty(BLOCK, OWNER)._replace(entries=array("I", bytes(16 << 20))))
    with pytest.raises(BrokenError):
        maps.decode(bomb, "x")
    small = maps.empty(BLOCK, OWNER)
    with pytest.raises(BrokenError, match="contradicts"):
        maps.decode(maps.encode(small._replace(entries=array("I", bytes(32)))), "x")


def digest_of(number: int) -> bytes:
    return bytes([number]) * DIGEST


def test_content_lies_under_everything_and_is_named_once() -> None:
    image = maps.from_digests(5 * BLOCK, OWNER, [digest_of(1), None, digest_of(2), digest_of(1), None])
    assert image.read_only
    assert image.digests == digest_of(1) + digest_of(2)
    assert image.layers(0) == image.layers(3) == (Source(digest_of(1), 0),)
    assert image.layers(0)[0].is_content
    assert image.layers(1) == ()
    clone = maps.clone(image, 6 * BLOCK, bytes(16))
    frozen = maps.freeze(clone, {0: 1, 5: 1})
    assert frozen.layers(0) == (clone.current, Source(digest_of(1), 0))
    assert frozen.layers(2) == (Source(digest_of(2), 0),)
    assert maps.decode(maps.encode(frozen), "x") == frozen


def test_content_that_is_hidden_is_not_named_any_more() -> None:
    image = maps.from_digests(3 * BLOCK, OWNER, [digest_of(1), digest_of(2), digest_of(3)])
    frozen = maps.freeze(maps.clone(image, image.size, bytes(16)), {1: FULL})
    assert frozen.digests == digest_of(1) + digest_of(3)
    assert frozen.layers(2) == (Source(digest_of(3), 0),)


def test_hashing_replaces_the_layers_of_a_block() -> None:
    old = maps.as_snapshot(deep_map())
    new = maps.with_content(old, {0: digest_of(7), 1: digest_of(7)})
    assert new.layers(0) == new.layers(1) == (Source(digest_of(7), 0),)
    assert new.sources == ()
    assert maps.with_content(new, {0: digest_of(8)}).digests == digest_of(7) + digest_of(8)


def test_an_entry_that_names_nothing_is_found_out_when_it_is_read() -> None:
    for number in (3, maps.CONTENT | 1):
        odd = maps.empty(BLOCK, OWNER)._replace(entries=array("I", (number, 0, 0, 0)))
        with pytest.raises(BrokenError):
            maps.decode(maps.encode(odd), "x").layers(0)


@given(seed=st.integers(0, 1 << 32))
def test_any_flipped_bit_is_noticed(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(maps.encode(deep_map()))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    with pytest.raises(BrokenError):
        maps.decode(bytes(data), "x")


@given(data=st.binary(max_size=300), keep=st.integers(0, 1 << 16))
def test_garbage_is_refused(data: bytes, keep: int) -> None:
    whole = maps.encode(deep_map())
    mixed = whole[: keep % len(whole)] + data
    assume(mixed != whole)
    with pytest.raises(BrokenError):
        maps.decode(mixed, "x")


def test_a_complete_layer_hides_those_below() -> None:
    old = deep_map()
    new = maps.freeze(old, {0: FULL})
    assert new.layers(0) == (old.current,)
    assert new.layers(1) == old.layers(1)


def test_the_last_block_is_complete_with_the_pages_it_has() -> None:
    old = maps.freeze(maps.empty(BLOCK + SECTOR, OWNER), {1: 1})
    assert full_mask(old.size, 1) == 1
    for pages in (1, FULL):  # a block that was copied up counts as full, also behind the volume's end
        assert maps.freeze(old, {1: pages}).layers(1) == (old.current,)


def test_a_merged_last_block_needs_no_layer_below() -> None:
    old = maps.empty(BLOCK + SECTOR, OWNER)
    for _ in range(DEPTH):
        old = maps.freeze(old, {1: 2})
    assert maps.freeze(old, {1: FULL}).layers(1) == (old.current,)


def test_a_clone_keeps_offsets_and_gets_holes_behind() -> None:
    parent = maps.as_snapshot(deep_map())
    clone = maps.clone(parent, 10 * BLOCK, bytes(16))
    assert clone.layers(1) == parent.layers(1)
    assert clone.blocks == 10
    assert clone.layers(9) == ()
    assert clone.epoch == 1
    assert not clone.read_only


@given(bits=st.integers(0, FULL), first=st.integers(0, 1023), length=st.integers(1, 1024))
def test_runs_cover_the_range_and_tell_the_truth(bits: int, first: int, length: int) -> None:
    end = min(1024, first + length)
    position = first
    for start, stop, is_set in runs(bits, first, end):
        assert start == position
        assert stop > start
        assert bits & mask_of(start, stop) == (mask_of(start, stop) if is_set else 0)
        position = stop
    assert position == end

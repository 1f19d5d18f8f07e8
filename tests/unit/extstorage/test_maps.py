# SPDX-License-Identifier: BSD-2-Clause
"""Maps: what is written is read back, what is damaged is refused, and depth stays bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extstorage import maps
from extstorage.errors import BrokenError
from extstorage.maps import DEPTH
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


def test_a_map_of_100_gib_is_small() -> None:
    assert len(maps.encode(maps.empty(100 << 30, OWNER))) < 500_000


@given(seed=st.integers(0, 1 << 32))
def test_any_flipped_bit_is_noticed(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(maps.encode(deep_map()))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    with pytest.raises(BrokenError):
        maps.decode(bytes(data), "x")


@given(data=st.binary(max_size=300), keep=st.integers(0, 200))
def test_garbage_is_refused(data: bytes, keep: int) -> None:
    mixed = maps.encode(deep_map())[:keep] + data
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
    assert maps.freeze(old, {1: 1}).layers(1) == (old.current,)


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

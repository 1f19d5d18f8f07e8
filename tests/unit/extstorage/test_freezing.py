# SPDX-License-Identifier: BSD-2-Clause
"""A map that is frozen in two steps, with a guest that goes on writing between them, is the map frozen in one."""

from __future__ import annotations

from random import Random

import pytest

from extstorage import maps, packing
from extstorage.freezing import Freezing
from extstorage.maps import DEPTH, VolumeMap
from extstorage.names import BLOCK, PAGE
from extstorage.pages import full_mask

BLOCKS = 40


def layers(volume_map: VolumeMap) -> list[tuple[maps.Source, ...]]:
    return [volume_map.layers(index) for index in range(BLOCKS)]


def written(chance: Random, old: VolumeMap, owned: dict[int, int]) -> dict[int, int]:
    """What a volume owns after some more writes; a block that is deep already is owned whole (`Volume._merge`)."""
    after = dict(owned)
    for index in chance.sample(range(BLOCKS), chance.randrange(BLOCKS)):
        whole = full_mask(old.size, index)
        is_whole = old.depth(index) == DEPTH or chance.random() < 0.3
        after[index] = whole if is_whole else after.get(index, 0) | 1 << chance.randrange(whole.bit_length())
    return after


def test_two_steps_are_as_good_as_one(seeds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_BLOCKS", 16)
    for seed in (50 * first + part for first in seeds for part in range(50)):
        chance = Random(seed)
        current = maps.empty((BLOCKS - 1) * BLOCK + 3 * PAGE, chance.randbytes(16))
        for _ in range(8):
            owned = written(chance, current, {}) if chance.random() < 0.8 else {}
            # Of blocks that a store has not told yet it is not known what they own, or whether that is anything.
            unread = {index for index in chance.sample(range(BLOCKS), 5) if current.depth(index) < DEPTH}
            told = dict.fromkeys(unread - owned.keys(), 0) | owned
            freezing = Freezing(current, told)
            for _ in range(chance.randrange(1, 4)):
                later = written(chance, current, owned)
                new = {index: later.get(index, 0) for index in told | later if later.get(index) != told.get(index)}
                freezing.update(new)
                owned = told = later
            frozen, packed = freezing.update({})
            expected = maps.freeze(current, owned)
            assert layers(frozen) == layers(expected), f"--seed={seed}"
            assert (frozen.epoch, frozen.size, frozen.owner) == (expected.epoch, expected.size, expected.owner)
            assert maps.decode(maps.encode(frozen, packed), "map") == frozen, f"--seed={seed}"
            current = frozen


def test_what_nobody_needs_any_more_is_dropped_by_a_later_one() -> None:
    whole = full_mask(BLOCK, 0)
    first = maps.freeze(maps.empty(2 * BLOCK, bytes(16)), {0: 1, 1: 1})
    second, _ = Freezing(first, {}).update({0: whole, 1: whole})
    third, _ = Freezing(second, {0: whole, 1: 1}).update({0: whole, 1: 1})
    assert [source.epoch for source in third.sources] == [2, 3]

# SPDX-License-Identifier: BSD-2-Clause
"""The index of a layer in RADOS: blocks are in it before they are made, and it costs few operations."""

from __future__ import annotations

import random

import pytest

from extstorage.maps import Source
from extstorage.names import PAGE
from extstorage.rados_layers import RadosLayer, index_key, indexed, make_layer
from extstorage.rados_pool import Change, Objects
from extstorage.rados_store import RadosStore

SOURCE = Source(bytes(range(16)), 1)
PAGES = 1


@pytest.fixture
def layer(rados_store: RadosStore) -> RadosLayer:
    return make_layer(rados_store._objects, SOURCE)


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The objects that were changed, as often as they were."""
    found: list[str] = []
    apply = Objects.apply

    def counting(self: Objects, key: str, change: Change, *, force: bool = False) -> None:
        found.append(key)
        apply(self, key, change, force=force)

    monkeypatch.setattr(Objects, "apply", counting)
    return found


def write(layer: RadosLayer, index: int) -> None:
    layer.write(index, 0, memoryview(bytes([index % 255 + 1]) * PAGE), PAGES)


def test_a_neighbourhood_is_filled_with_few_changes_of_the_index(layer: RadosLayer, changes: list[str]) -> None:
    for index in range(64, 128):
        write(layer, index)
    assert changes.count(index_key(SOURCE)) == 7
    assert changes.count(index_key(SOURCE)) + 64 == len(changes)


def test_little_is_in_doubt_after_many_first_writes(layer: RadosLayer, rados_store: RadosStore) -> None:
    """Who opens the volume after its server's death has to look at each block that is in doubt."""
    for index in range(512):
        write(layer, index)
    assert rados_store._objects.read(index_key(SOURCE), 1000).count(b"\1") == 512 // 64


def test_lonely_blocks_are_entered_alone(layer: RadosLayer, rados_store: RadosStore) -> None:
    lonely = [7, 64, 64 + 63, 5000]
    for index in lonely:
        write(layer, index)
    assert set(indexed(rados_store._objects, SOURCE)) <= {*lonely, 127}
    assert len(indexed(rados_store._objects, SOURCE)) == 4


def test_at_most_half_of_what_is_entered_was_in_vain(layer: RadosLayer, rados_store: RadosStore) -> None:
    chance = random.Random(7)
    written = set()
    for _ in range(150):
        index = chance.randrange(256)
        write(layer, index)
        written.add(index)
        entered = indexed(rados_store._objects, SOURCE)
        assert written <= set(entered)
        assert len(entered) <= 2 * len(written)


def test_who_opens_the_layer_sees_only_what_was_written(layer: RadosLayer, rados_store: RadosStore) -> None:
    for index in (0, 1, 3, 2, 200):
        write(layer, index)
    assert len(indexed(rados_store._objects, SOURCE)) > 5
    again = make_layer(rados_store._objects, SOURCE)
    assert set(again.present()) == {0, 1, 2, 3, 200}
    assert indexed(rados_store._objects, SOURCE) == [0, 1, 2, 3, 200]
    # What was taken out can be written again.
    write(again, 4)
    assert set(make_layer(rados_store._objects, SOURCE).present()) == {0, 1, 2, 3, 4, 200}

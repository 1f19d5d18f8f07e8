# SPDX-License-Identifier: BSD-2-Clause
"""A layer in RADOS: blocks are in its index before they are made, which costs few operations.

And what it believes of a block while others read, change or check it at the same time.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from extstorage import catalog, fsck
from extstorage.bitmaps import indexes_of
from extstorage.maps import Source
from extstorage.names import BLOCK, PAGE
from extstorage.pages import mask_of
from extstorage.rados_layers import RadosLayer, index_key, indexed, make_layer
from extstorage.rados_pool import Change, Objects
from extstorage.rados_store import RadosStore
from extstorage.session import Session

SOURCE = Source(bytes(range(16)), 1)
PAGES = 1
A, B = (memoryview(letter * PAGE) for letter in (b"a", b"b"))


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


def entered(store: RadosStore) -> list[int]:
    return list(indexes_of(indexed(store._objects, SOURCE)))


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
    assert set(entered(rados_store)) <= {*lonely, 127}
    assert len(entered(rados_store)) == 4


def test_at_most_half_of_what_is_entered_was_in_vain(layer: RadosLayer, rados_store: RadosStore) -> None:
    chance = random.Random(7)
    written = set()
    for _ in range(150):
        index = chance.randrange(256)
        write(layer, index)
        written.add(index)
        assert written <= set(entered(rados_store))
        assert len(entered(rados_store)) <= 2 * len(written)


def test_who_opens_the_layer_sees_only_what_was_written(layer: RadosLayer, rados_store: RadosStore) -> None:
    for index in (0, 1, 3, 2, 200):
        write(layer, index)
    assert len(entered(rados_store)) > 5
    again = make_layer(rados_store._objects, SOURCE)
    assert set(again.present()) == {0, 1, 2, 3, 200}
    assert entered(rados_store) == [0, 1, 2, 3, 200]
    # What was taken out can be written again.
    write(again, 4)
    assert set(make_layer(rados_store._objects, SOURCE).present()) == {0, 1, 2, 3, 4, 200}


def read(session: Session, offset: int) -> bytes:
    buffer = bytearray(PAGE)
    session.readinto(memoryview(buffer), offset)
    return bytes(buffer)


def in_between(monkeypatch: pytest.MonkeyPatch, what: object, name: str, act: Callable[[], object]) -> None:
    """Do something once, right after `what` was asked for something and before the caller has the answer."""
    real = getattr(what, name)
    pending = [act]

    def call(*arguments: Any, **more: Any) -> Any:
        answer = real(*arguments, **more)
        while pending:
            pending.pop()()
        return answer

    monkeypatch.setattr(what, name, call)


def test_a_check_between_index_and_object_loses_no_block(
    rados_store: RadosStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write of a block is on its way, and somebody looks what the layer has."""
    catalog.create_volume(rados_store, "vol", 4 * BLOCK)
    session = Session(rados_store, "vol")
    session.write(A, 0)
    in_between(monkeypatch, RadosLayer, "_enter", lambda: fsck.check(rados_store))
    session.write(B, BLOCK)
    monkeypatch.undo()
    session.shutdown()
    assert read(Session(rados_store, "vol"), BLOCK) == bytes(B)
    again = Session(rados_store, "vol")
    again.open(True)
    assert read(again, BLOCK) == bytes(B)
    again.shutdown()


def test_an_old_answer_does_not_replace_what_a_write_has_learnt(
    layer: RadosLayer, rados_store: RadosStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader hears that a page is a zero page, a write changes that, and only then the reader takes note."""
    objects = rados_store._objects
    layer.write(0, 0, A, 1)
    layer.punch(0, PAGE, PAGE, mask_of(0, 2))
    layer = make_layer(objects, SOURCE)
    writer = threading.Thread(target=layer.write, args=(0, PAGE, B, mask_of(0, 2)))

    def write() -> None:
        writer.start()
        writer.join(0.5)  # as far as it gets while the reader is where it is

    in_between(monkeypatch, objects, "attribute", write)
    buffer = bytearray(2 * PAGE)
    layer.readinto(0, 0, memoryview(buffer))
    writer.join()
    layer.readinto(0, 0, memoryview(buffer))
    assert buffer == bytes(A) + bytes(B)
    layer.write(0, 2 * PAGE, A, mask_of(0, 3))
    make_layer(objects, SOURCE).readinto(0, 0, memoryview(buffer))
    assert buffer == bytes(A) + bytes(B)

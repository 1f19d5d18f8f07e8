# SPDX-License-Identifier: BSD-2-Clause
"""A map that is read piece by piece says what it says when it is read at once, and is refused where that is refused."""

from __future__ import annotations

import random
import zlib
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from extstorage import maps, scans
from extstorage.errors import BrokenError
from extstorage.maps import DEPTH, HEADER, Source
from extstorage.names import BLOCK
from extstorage.scans import Scan, scan_of
from tests.unit.extstorage.test_maps import any_map, deep_map


class Told:
    """Puts a map together again."""

    def __init__(self) -> None:
        self.layers: tuple[Source, ...] = ()
        self.columns: list[dict[int, int]] = []
        self.contents = b""

    def sources(self, sources: tuple[Source, ...]) -> None:
        self.layers = sources

    def numbers(self, first: int, numbers: array[int]) -> None:
        assert any(numbers)
        if not self.columns or first in self.columns[-1] or max(self.columns[-1]) > first:
            self.columns.append({})
        self.columns[-1].update(enumerate(numbers, first))

    def digests(self, digests: bytes) -> None:
        self.contents += digests


def read(data: bytes, piece: int) -> tuple[maps.VolumeMap, Told]:
    def pieces() -> Iterator[bytes]:
        return (data[at : at + piece] for at in range(HEADER, len(data), piece))

    scan = Scan(data[:HEADER], "x", pieces, "body")
    told = Told()
    scan.read(told)
    return scan.head, told


def rows_of(found: maps.VolumeMap) -> list[list[int]]:
    """Each column that is not all zeros."""
    columns = [list(found.entries[place::DEPTH]) for place in range(DEPTH)]
    return [column for column in columns if any(column)]


@given(seed=st.integers(0, 1 << 32), piece=st.integers(1, 200))
def test_what_is_told_is_what_decoding_says(seed: int, piece: int) -> None:
    found = any_map(random.Random(seed))
    head, told = read(maps.encode(found), piece)
    assert head == found._replace(sources=(), entries=array("I"), digests=b"")
    assert (told.layers, told.contents) == (found.sources, found.digests)
    assert [[column[index] for index in sorted(column)] for column in told.columns] == rows_of(found)


def test_columns_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "_PART", 3)
    found = maps.freeze(maps.freeze(maps.empty(10 * BLOCK, bytes(16)), {1: 1, 8: 1}), {8: 1})
    _, told = read(maps.encode(found), 7)
    assert told.columns[0] == {0: 0, 1: 1, 2: 0, 6: 0, 7: 0, 8: 2}
    assert told.columns[1] == {6: 0, 7: 0, 8: 1}


@given(seed=st.integers(0, 1 << 32), piece=st.integers(1, 300))
def test_any_flipped_bit_is_noticed(seed: int, piece: int) -> None:
    chance = random.Random(seed)
    data = bytearray(maps.encode(chance.choice((deep_map, lambda: any_map(chance)))()))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    with pytest.raises(BrokenError):
        read(bytes(data), piece)


@given(data=st.binary(max_size=300), keep=st.integers(0, 1 << 16), piece=st.integers(1, 300))
def test_garbage_is_refused(data: bytes, keep: int, piece: int) -> None:
    whole = maps.encode(deep_map())
    mixed = whole[: keep % len(whole)] + data
    assume(mixed != whole)
    with pytest.raises(BrokenError):
        read(mixed, piece)


def test_entries_never_unpack_to_more_than_the_volume_has() -> None:
    bomb = maps.encode(maps.empty(BLOCK, bytes(16))._replace(entries=array("I", bytes(16 << 20))))
    with pytest.raises(BrokenError, match="contradicts"):
        read(bomb, 100)
    planes = scans._Planes(iter((zlib.compress(bytes(16 << 20)),)), 1, "x")
    assert [len(planes.read()) for _ in range(16)] == [1] * 16
    with pytest.raises(BrokenError, match="unpacked"):
        planes.end()


def test_clones_and_snapshots_are_known_by_their_body() -> None:
    image = maps.as_snapshot(deep_map())
    clone = maps.clone(image, 2 * image.size, bytes(16))
    bodies = [scan_of(maps.encode(one), "x").body for one in (image, clone, maps.freeze(clone, {2: 1}))]
    assert bodies[0] == bodies[1] != bodies[2]

# SPDX-License-Identifier: BSD-2-Clause
"""Entries packed in pieces: an ordinary stream, whatever changed since the last time."""

from __future__ import annotations

import random
import zlib
from array import array

import pytest

from extstorage import packing
from extstorage.packing import NUMBERS, ROW, Packing


def planes(entries: array[int]) -> bytes:
    rows = b"".join(number.to_bytes(4, "little") for number in entries)
    return b"".join(rows[place::ROW] for place in range(ROW))


@pytest.mark.parametrize("blocks", [0, 1, 7, 8, 9, 100])
def test_what_is_packed_is_one_zlib_stream(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_BLOCKS", 8)
    entries = array("I", (random.Random(blocks).getrandbits(32) for _ in range(blocks * NUMBERS)))
    assert zlib.decompress(Packing(entries).packed()) == planes(entries)


def test_after_changes_it_is_as_if_packed_anew(monkeypatch: pytest.MonkeyPatch, seeds: list[int]) -> None:
    monkeypatch.setattr(packing, "_BLOCKS", 8)
    for seed in seeds:
        chance = random.Random(seed)
        found = Packing(array("I"))
        for _ in range(60):
            if chance.random() < 0.3:
                found.reach(chance.randrange(60))
            for _ in range(chance.randrange(4) if found.entries else 0):
                row = array("I", (chance.choice((0, 1, 300, 1 << 31, chance.getrandbits(32))) for _ in range(NUMBERS)))
                found.replace(chance.randrange(len(found.entries) // NUMBERS), row)
            if chance.random() < 0.5:
                assert found.packed() == Packing(found.entries).packed(), f"--seed={seed}"
                assert zlib.decompress(found.packed()) == planes(found.entries), f"--seed={seed}"


def test_only_what_changed_is_packed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Packing(array("I", bytes(ROW * 200_000)))
    found.packed()
    deflated = packing._deflated
    again: list[int] = []

    def noted(data: bytes) -> packing.Piece:
        again.append(len(data))
        return deflated(data)

    monkeypatch.setattr(packing, "_deflated", noted)
    found.replace(70_000, array("I", (5, 0, 0, 0)))
    found.replace(70_001, array("I", (300, 0, 0, 0)))
    found.packed()
    assert again == [1 << 14, 1 << 14]


def test_checksums_are_combined_as_zlib_would_have_made_them() -> None:
    chance = random.Random(1)
    for _ in range(200):
        first, second = chance.randbytes(chance.randrange(70000)), chance.randbytes(chance.randrange(70000))
        combined = packing._combined(zlib.adler32(first), zlib.adler32(second), len(second))
        assert combined == zlib.adler32(first + second)

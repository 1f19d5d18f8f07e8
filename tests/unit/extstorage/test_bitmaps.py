# SPDX-License-Identifier: BSD-2-Clause
"""Bitmaps of blocks, against sets of numbers."""

from __future__ import annotations

import random

import pytest

from extstorage.bitmaps import Sample, bits_of, indexes_of, lookup, runs_of


@pytest.mark.parametrize("wanted", [set(), {0}, {7}, {0, 1, 2, 9}, set(random.Random(1).sample(range(5000), 700))])
def test_a_bitmap_is_a_set_of_numbers(wanted: set[int]) -> None:
    bits = sum(1 << index for index in wanted)
    assert set(indexes_of(bits)) == wanted
    assert list(indexes_of(bits)) == sorted(wanted)
    assert {index for first, end in runs_of(bits) for index in range(first, end)} == wanted
    assert all(end - 1 in wanted and end not in wanted for _, end in runs_of(bits))
    is_set = lookup(bits)
    assert {index for index in range(5100) if is_set(index)} == wanted
    flags = bytes(1 + index % 2 if index in wanted else 0 for index in range(5100))
    assert bits_of(flags, 1, 2) == bits
    assert bits_of(flags, 1) == sum(1 << index for index in wanted if not index % 2)
    assert bits_of(b"", 1) == 0


@pytest.mark.parametrize("sizes", [[], [0, 3], [5, 5, 5], [1] * 1000, [100_000, 1, 0, 77], [7, 1 << 20]])
def test_a_sample_lies_evenly_and_is_bounded(sizes: list[int]) -> None:
    sample: Sample[int] = Sample(8)
    for owner, size in enumerate(sizes):
        sample.add(owner, (1 << size) - 1 << 5)
    every = [(owner, index + 5) for owner, size in enumerate(sizes) for index in range(size)]
    step = 1
    while len(every) > 16 * step:
        step *= 2
    assert sample.count == len(every)
    assert sample.chosen == every[::step]
    assert sample.sum_of([3] * len(sample.chosen)) == 3 * len(every)

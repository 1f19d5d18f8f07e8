# SPDX-License-Identifier: BSD-2-Clause
"""Zeroing a range of an object: what it says, nothing else, and the OSD survives it."""

from __future__ import annotations

import pytest

from extstorage.rados_pool import Change
from extstorage.rados_store import RadosStore

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (4096, 8192), (8192, 4096), (4096, 1), (12288, 4096)])
def test_exactly_the_range_is_zero(rados_store: RadosStore, offset: int, length: int) -> None:
    objects = rados_store._objects
    key = f"data.{offset}.{length}"
    objects.apply(key, Change().write_full(b"x" * 16384))
    change = Change().touch()
    objects.zero(change, offset, length)
    objects.apply(key, change)
    expected = b"x" * offset + bytes(length) + b"x" * (16384 - offset - length)
    assert objects.read(key, 16384).ljust(16384, b"\0") == expected
    left = list(objects.keys())
    assert key in left
    assert not any(name.startswith("probe") for name in left)

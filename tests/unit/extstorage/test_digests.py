# SPDX-License-Identifier: BSD-2-Clause
"""The set of digests, against Python's."""

from __future__ import annotations

import random

from extstorage.digests import Digests, digests_in


def test_what_was_added_is_in_it() -> None:
    chance = random.Random(3)
    every = [chance.randbytes(32) for _ in range(20_000)]
    found = Digests()
    added = every[::2]
    assert all(found.add(digest) for digest in added)
    assert not any(found.add(digest) for digest in chance.sample(added, 100))
    assert len(found) == len(added)
    assert [digest in found for digest in every] == [True, False] * 10_000
    assert list(digests_in(b"".join(every))) == every

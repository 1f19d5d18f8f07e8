# SPDX-License-Identifier: BSD-2-Clause
"""A set of the names of content blocks, of which there may be millions: 36 MiB for 16 TiB, where a set needs 600.

Of each digest, 8 bytes are kept. Among four millions of them, two agree in these in one of two million stores.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator

from extstorage.maps import DIGEST

_BUCKETS = 4096


class Digests:
    """See the module."""

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(_BUCKETS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: object) -> bool:
        assert isinstance(digest, bytes)
        bucket, number, at = self._find(digest)
        return at < len(bucket) and bucket[at] == number

    def add(self, digest: bytes) -> bool:
        """Answers whether it is new."""
        bucket, number, at = self._find(digest)
        if at < len(bucket) and bucket[at] == number:
            return False
        bucket.insert(at, number)
        self._count += 1
        return True

    def _find(self, digest: bytes) -> tuple[array[int], int, int]:
        number = int.from_bytes(digest[:8], "little")
        bucket = self._buckets[number % _BUCKETS]
        return bucket, number, bisect_left(bucket, number)


def digests_in(table: bytes) -> Iterator[bytes]:
    """The digests of a map, one after the other."""
    return (table[at : at + DIGEST] for at in range(0, len(table), DIGEST))

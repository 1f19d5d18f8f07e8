# SPDX-License-Identifier: BSD-2-Clause
"""What content blocks have in common in all stores, seen as layers: they have all their pages, and never change."""

# ruff: noqa: ARG002 - `store.py` prescribes the arguments

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping

from extstorage.pages import FULL


class ContentLayer:
    """One content block, whatever index it is read at. How it is read is its store's business."""

    def prefetch(self, index: int, offset: int, length: int) -> None:
        """Nothing, where there is no cache to fill."""

    def plain_object(self, index: int) -> str:
        return ""

    def load_pages(self, index: int) -> int:
        return FULL

    def present(self) -> dict[int, int | None]:
        return {0: FULL}

    def blocks(self) -> Iterator[tuple[int, int | None]]:
        return iter(((0, FULL),))

    def write(self, index: int, offset: int, data: memoryview, pages: int | None) -> None:
        raise _immutable()

    def punch(self, index: int, offset: int, length: int, pages: int | None) -> None:
        raise _immutable()

    def save_pages(self, pages: Mapping[int, int]) -> None:
        raise _immutable()

    def begin_sync(self) -> None:
        """It was durable before any map named it."""

    def sync(self) -> None:
        """The same."""


def _immutable() -> OSError:
    return OSError(errno.EROFS, "a content block is immutable")

# SPDX-License-Identifier: BSD-2-Clause
"""What a volume must read as: pages in a dictionary, and what each page was since the last flush.

Unflushed, a page may be lost by a dying machine, sector by sector, to anything that it was since it was last flushed.
It may never be what it was before that, or what another volume wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from extstorage.names import PAGE

ZEROS = bytes(PAGE)


class Model:
    """Sparse: a volume of terabytes costs what was written to it."""

    def __init__(self, size: int, pages: dict[int, bytes] | None = None) -> None:
        self.size = size
        self.pages = pages or {}
        self.older: dict[int, list[bytes]] = {}

    def copy(self, size: int = 0) -> Model:
        """What a snapshot of it, or a clone of `size`, reads as."""
        return Model(max(self.size, size), dict(self.pages))

    def moment(self) -> Model:
        """It, as it is now."""
        found = self.copy()
        found.older = {page: list(versions) for page, versions in self.older.items()}
        return found

    def _cut(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        while length:
            page, inside = divmod(offset, PAGE)
            part = min(length, PAGE - inside)
            yield page, inside, part
            offset += part
            length -= part

    def _set(self, page: int, content: bytes) -> None:
        old = self.pages.get(page, ZEROS)
        if content != old:
            self.older.setdefault(page, []).append(old)
            self.pages[page] = content

    def read(self, offset: int, length: int) -> bytes:
        parts = (self.pages.get(page, ZEROS)[start : start + part] for page, start, part in self._cut(offset, length))
        return b"".join(parts)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        data = bytes(data)
        done = 0
        for page, inside, part in self._cut(offset, len(data)):
            old = self.pages.get(page, ZEROS)
            self._set(page, old[:inside] + data[done : done + part] + old[inside + part :])
            done += part

    def zero(self, offset: int, length: int) -> None:
        end = offset + length
        first, last = -(-offset // PAGE), end // PAGE
        if last <= first:
            self.write(bytes(length), offset)
            return
        self.write(bytes(first * PAGE - offset), offset)
        self._clear(first, last)
        self.write(bytes(end - last * PAGE), last * PAGE)

    def discard(self, offset: int, length: int) -> None:
        """Whole pages only, as the data path promises."""
        self._clear(-(-offset // PAGE), (offset + length) // PAGE)

    def _clear(self, first: int, end: int) -> None:
        wanted: Iterable[int] = range(first, end)
        if end - first > len(self.pages):
            wanted = [page for page in self.pages if first <= page < end]
        for page in wanted:
            self._set(page, ZEROS)

    def flushed(self) -> None:
        self.older.clear()

    def allowed(self, page: int) -> list[bytes]:
        """What a page may be after the death of the machine, sector by sector."""
        return [self.pages.get(page, ZEROS), *self.older.get(page, ())]

# SPDX-License-Identifier: BSD-2-Clause
"""What a machine that loses power may find on its disk, from the changes that `tap.py` has seen.

What was synced is there. Of the rest, each page of a file may be there or not, in any order, or as one of the things
that it was in between, torn between sectors of 512 bytes. The names of a directory change in order, but how many of the
changes since it was synced are there, nobody knows. POSIX promises no more; ext4 and XFS do better.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

from extstorage.names import PAGE, SECTOR
from tests.datapath.tap import Event, Loss, Names, Node, Sync, Write

_ZEROS = bytes(PAGE)


class _File:
    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.size = 0
        self.newer: dict[int, list[bytes]] = {}
        #: What a sync that failed was to write; it may be on the disk, until it is written again.
        self.lost: dict[int, list[bytes]] = {}
        self.last_size = 0

    def write(self, event: Write) -> None:
        self.last_size = event.size
        for page, content in event.pages.items():
            self.newer.setdefault(page, []).append(content)

    def sync(self) -> None:
        self.pages.update((page, versions[-1]) for page, versions in self.newer.items())
        for page in self.newer:
            self.lost.pop(page, None)
        self.newer.clear()
        self.size = self.last_size

    def lose(self) -> None:
        for page, versions in self.newer.items():
            self.lost.setdefault(page, []).extend(versions)
        self.newer.clear()

    @property
    def in_doubt(self) -> dict[int, list[bytes]]:
        """Per page what it may be instead."""
        pages = self.lost.keys() | self.newer.keys()
        return {page: [*self.lost.get(page, ()), *self.newer.get(page, ())] for page in sorted(pages)}


class _Directory:
    def __init__(self) -> None:
        self.entries: dict[str, Node] = {}
        self.newer: list[Names] = []

    def sync(self) -> None:
        self.entries = self.after(len(self.newer))
        self.newer.clear()

    def after(self, count: int) -> dict[str, Node]:
        entries = dict(self.entries)
        for change in self.newer[:count]:
            for name in change.gone:
                entries.pop(name, None)
            entries.update(change.come)
        return entries


class Disk:
    """The disk while events happen to it."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._files: dict[Node, _File] = {}
        self._directories: dict[Node, _Directory] = {}

    def happens(self, event: Event) -> None:
        node = event.node
        if node.entries is None:
            file = self._files.setdefault(node, _File())
            if isinstance(event, Write):
                file.write(event)
            elif isinstance(event, Loss):
                file.lose()
            else:
                file.sync()
            return
        directory = self._directories.setdefault(node, _Directory())
        if isinstance(event, Names):
            directory.newer.append(event)
        elif isinstance(event, Sync):
            directory.sync()

    @property
    def is_certain(self) -> bool:
        """Nothing is in doubt: every crash now leaves the same."""
        return not any(file.in_doubt for file in self._files.values()) and not any(
            directory.newer for directory in self._directories.values()
        )

    def crash(self, chance: Random, target: Path) -> None:
        """Write one of the states that a crash may leave into `target`."""
        keep = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        torn = chance.choice((0.0, 0.0, 0.3))
        self._write_directory(self._root, target, _Dice(chance, keep, torn))

    def _write_directory(self, node: Node, path: Path, dice: _Dice) -> None:
        os.mkdir(path)
        directory = self._directories.get(node)
        if directory is None:
            return
        for name, child in directory.after(dice.prefix(len(directory.newer))).items():
            if child.entries is None:
                self._write_file(self._files.get(child), f"{path}/{name}", dice)
            else:
                self._write_directory(child, path / name, dice)

    def _write_file(self, file: _File | None, path: str, dice: _Dice) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            if file is None:
                return
            pages = dict(file.pages)
            size = dice.size(file.size, file.last_size)
            for page, versions in file.in_doubt.items():
                content = dice.page([file.pages.get(page, _ZEROS), *versions])
                if content is not None:
                    pages[page] = content
                    size = max(size, min(file.last_size, (page + 1) * PAGE))
            for start, content in _joined(pages):
                os.pwrite(descriptor, content, start * PAGE)
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


def _joined(pages: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Neighbouring pages together; holes are left out."""
    start, parts = 0, list[bytes]()
    for page in sorted(page for page, content in pages.items() if content != _ZEROS):
        if parts and start + len(parts) != page:
            yield start, b"".join(parts)
            parts = []
        if not parts:
            start = page
        parts.append(pages[page])
    if parts:
        yield start, b"".join(parts)


class _Dice:
    """One crash's luck."""

    def __init__(self, chance: Random, keep: float, torn: float) -> None:
        self._chance = chance
        self._keep = keep
        self._torn = torn

    def prefix(self, count: int) -> int:
        if not count or self._keep in (0.0, 1.0):
            return int(count * self._keep)
        return self._chance.randint(0, count)

    def size(self, old: int, new: int) -> int:
        return new if self._chance.random() < self._keep else old

    def page(self, versions: list[bytes]) -> bytes | None:
        """One of the versions, oldest first, or a mixture of their sectors; None for the oldest."""
        if self._chance.random() < self._torn:
            sectors = range(0, PAGE, SECTOR)
            return b"".join(self._chance.choice(versions)[start : start + SECTOR] for start in sectors)
        if self._chance.random() >= self._keep:
            return None
        return versions[-1] if self._chance.random() < 0.8 else self._chance.choice(versions[1:])

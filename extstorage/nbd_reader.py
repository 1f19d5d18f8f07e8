# SPDX-License-Identifier: BSD-2-Clause
"""Reading a whole disk from an NBD server: only what is not zero, several blocks at a time. Over libnbd.

The server is one that we started on something hostile: its numbers are judged before they are used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import nbd

from extstorage.content import READING, Block, Take
from extstorage.errors import UnreadableError
from extstorage.names import BLOCK

#: Milliseconds for which a server may be silent.
_PATIENCE = 120_000

#: Bytes whose extents are asked for at a time.
_WINDOW = 256 * BLOCK


class NbdReader:
    """One connection."""

    def __init__(self, socket: Path) -> None:
        self._client = nbd.NBD()
        self._client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        self._client.set_pread_initialize(False)
        try:
            self._client.connect_unix(str(socket))
            self.size = int(self._client.get_size())
        except nbd.Error as error:
            raise UnreadableError(reason=error.string) from None

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        """The blocks from number `first` on, in order; those that the server calls zero are left out."""
        running: deque[tuple[Block, int]] = deque()
        try:
            for number in self._allocated(first):
                block = Block(number, take(), min(BLOCK, self.size - number * BLOCK))
                target = nbd.Buffer.from_buffer(block.buffer[: block.length])
                running.append((block, self._client.aio_pread(target, number * BLOCK)))
                if len(running) == READING:
                    yield self._await(*running.popleft())
            while running:
                yield self._await(*running.popleft())
        except nbd.Error as error:
            raise UnreadableError(reason=error.string) from None

    def _await(self, block: Block, cookie: int) -> Block:
        while not self._client.aio_command_completed(cookie):
            if self._client.poll(_PATIENCE) == 0:
                raise UnreadableError(reason="its reader is silent")
        return block

    def _allocated(self, first: int) -> Iterator[int]:
        """The numbers of the blocks that hold something."""
        for start in range(first * BLOCK, self.size, _WINDOW):
            end = min(self.size, start + _WINDOW)
            wanted: set[int] = set()
            position = start
            while position < end:
                position = self._mark(position, end, wanted)
            yield from sorted(wanted)

    def _mark(self, position: int, end: int, wanted: set[int]) -> int:
        """Add what one answer of the server says; answers with the position where that ends."""
        found: list[int] = []

        def keep(_context: str, _offset: int, entries: list[int], _error: object) -> int:
            found.extend(entries)
            return 0

        if self._client.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION):
            self._client.block_status(end - position, position, keep)
        if not found or not all(found[::2]):
            found = [end - position, 0]
        for length, flags in zip(found[::2], found[1::2], strict=True):
            stop = min(end, position + length)
            if not flags & nbd.STATE_ZERO and stop > position:
                wanted.update(range(position // BLOCK, -(-stop // BLOCK)))
            position = stop
        return position

    def close(self) -> None:
        self._client.close()

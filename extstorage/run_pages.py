# SPDX-License-Identifier: BSD-2-Clause
"""What a server tells its successor through /run: which pages it owns that are not flushed yet.

A server may die at any moment while the guest goes on. The data that it handed to the kernel is still there, so the
marks must be too. They are written here at once, with pwrite(2) and not through a mapping, because a full tmpfs must be
an error and not SIGBUS. The marks count only while nobody else has held the volume's lock since (`tokens`).

    DIR/owner.json                  {"tokens": [...]}: lock tokens under which the marks are true
    DIR/pages-OWNER-EPOCH           128 bytes per block
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from extstorage.maps import Source
from extstorage.pages import EMPTY_RECORD, RECORD, from_record, to_record
from ganeti_plugin.files import write_atomically

_PREFIX = "pages-"
_TOKENS = "owner.json"


class RunPages:
    """The marks of one layer."""

    _descriptor = -1

    def __init__(self, directory: Path, source: Source) -> None:
        self._path = directory / f"{_PREFIX}{source.owner.hex()}-{source.epoch:016x}"
        forget(directory, keep=self._path.name)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def load(self) -> dict[int, int]:
        found = {}
        size = os.fstat(self._descriptor).st_size
        for position in range(0, size, RECORD << 10):
            chunk = os.pread(self._descriptor, RECORD << 10, position)
            for start in range(0, len(chunk), RECORD):
                record = chunk[start : start + RECORD]
                if record != EMPTY_RECORD[: len(record)]:
                    found[(position + start) // RECORD] = from_record(record)
        return found

    def set(self, index: int, bits: int) -> None:
        os.pwrite(self._descriptor, to_record(bits), index * RECORD)

    def close(self) -> None:
        """Close, and leave the marks for a successor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def forget(directory: Path, keep: str = "") -> None:
    """Remove marks, except those in the file `keep`."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            if name.startswith(_PREFIX) and name != keep:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(directory / name)


def read_tokens(directory: Path) -> tuple[str, ...]:
    """The lock tokens under which the marks in this directory are true."""
    try:
        found = json.loads((directory / _TOKENS).read_bytes())["tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(str(token) for token in found)


def write_tokens(directory: Path, tokens: Sequence[str]) -> None:
    write_atomically(directory / _TOKENS, json.dumps({"tokens": list(tokens)}).encode(), mode=0o600, durable=False)


def are_left(directory: Path) -> bool:
    """Whether a server that died left marks here."""
    try:
        return any(name.startswith(_PREFIX) for name in os.listdir(directory))
    except FileNotFoundError:
        return False

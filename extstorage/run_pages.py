# SPDX-License-Identifier: BSD-2-Clause
"""What a server tells its successor through /run: which pages it owns that are not flushed yet.

A server may die at any moment while the guest goes on. The data that it handed to the kernel is still there, so the
marks must be too. They are written here at once, with pwrite(2) and not through a mapping, because a full tmpfs must be
an error and not SIGBUS. The marks count only while nobody else has held the volume's lock since (`owner.json`).

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

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

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


class RunMarks:
    """The marks of one volume, in its directory under /run; without a directory, it has none."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def pages(self, source: Source) -> RunPages | None:
        """Those of the current epoch's layer; what there is of others is removed."""
        if self._directory is None:
            return None
        _forget(self._directory, keep=_name_of(source))
        return RunPages(self._directory / _name_of(source))

    def forget(self) -> None:
        """Remove them: what they tell is in the store, or is not true any more."""
        if self._directory is not None:
            _forget(self._directory)

    def are_left(self) -> bool:
        """Whether a server that died left any."""
        return self._directory is not None and any(_marks_in(self._directory))

    def are_true_under(self, token: str) -> bool:
        """Whether they count for who follows the holder with this token of the lock."""
        return bool(token) and token in self._tokens()

    def hand_over(self, old: str, new: str) -> None:
        """Keep them if nobody held the lock since the holder with the token `old`, else drop them.

        Both tokens are true for a moment: a death before or after the new one is recorded must not lose marks.
        """
        kept = self.are_true_under(old)
        if not kept:
            self.forget()
        self._write_tokens([old, new] if kept else [new])

    def belong_to(self, token: str) -> None:
        """From now on they are true under this token of the lock alone."""
        self._write_tokens([token])

    def _tokens(self) -> tuple[str, ...]:
        if self._directory is None:
            return ()
        try:
            found = json.loads((self._directory / _TOKENS).read_bytes())["tokens"]
        except (OSError, ValueError, KeyError, TypeError):
            return ()
        return tuple(str(token) for token in found)

    def _write_tokens(self, tokens: Sequence[str]) -> None:
        if self._directory is not None:
            data = json.dumps({"tokens": list(tokens)}).encode()
            write_atomically(self._directory / _TOKENS, data, mode=0o600, durable=False)


def _name_of(source: Source) -> str:
    return f"{_PREFIX}{source.owner.hex()}-{source.epoch:016x}"


def _forget(directory: Path, keep: str = "") -> None:
    for name in _marks_in(directory):
        if name != keep:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(directory / name)


def _marks_in(directory: Path) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if name.startswith(_PREFIX)]
    except FileNotFoundError:
        return []

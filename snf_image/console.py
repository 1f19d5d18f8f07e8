# SPDX-License-Identifier: BSD-2-Clause
"""The helper's console in the creation's log: hostile text, so escaped, cut, and never allowed to fill a disk (V03)."""

from __future__ import annotations

from ganeti_plugin import log
from snf_image.conversation import HelperError, printable

#: Bytes that are shown, and bytes that are taken before the run is ended as an attack.
SHOWN_LIMIT = 64 * 1024
TAKEN_LIMIT = 64 * 1024 * 1024

LINE_LIMIT = 512


class Console:
    """Feed it what the console prints; whole lines go to the log, up to the limit."""

    def __init__(self) -> None:
        self._taken = 0
        self._buffer = b""
        self._shown = 0

    def feed(self, data: bytes) -> None:
        """Raises HelperError when the guest floods its console."""
        self._taken += len(data)
        if self._taken > TAKEN_LIMIT:
            raise HelperError(reason=f"printed more than {TAKEN_LIMIT >> 20} MiB on its console")
        if self._shown >= SHOWN_LIMIT:
            return
        *lines, rest = (self._buffer + data).split(b"\n")
        for line in lines:
            self._show(line)
        self._buffer = rest[:LINE_LIMIT]

    def finish(self) -> None:
        """Show the last line, which may have no end."""
        if self._buffer:
            self._show(self._buffer)
            self._buffer = b""

    def _show(self, line: bytes) -> None:
        text = printable(line[:LINE_LIMIT].strip(b"\r").decode("utf-8", "replace"))
        if self._shown >= SHOWN_LIMIT or not text.strip():
            return
        self._shown += len(text) + 1
        log.info("helper: %s", text)
        if self._shown >= SHOWN_LIMIT:
            log.warning("the helper VM prints too much; its console is not shown any more")

# SPDX-License-Identifier: BSD-2-Clause
"""Lets the requests of a volume through, until somebody holds them all to have the volume alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from extstorage.errors import ServerError

#: Seconds that running requests have to end before whoever wants the volume alone gives up.
DRAIN_TIMEOUT = 60.0


class Gate:
    """See the module. Each `enter` is followed by a `leave`; neither is ever called by who holds the gate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._running = 0
        self._held = False

    def enter(self) -> None:
        """Wait while the gate is held, then count as a running request."""
        # The lock itself, for each request passes here twice: `with` is quicker for it than for its condition.
        with self._lock:
            while self._held:
                self._condition.wait()
            self._running += 1

    def leave(self) -> None:
        with self._lock:
            self._running -= 1
            if self._held and not self._running:
                self._condition.notify_all()

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait for running requests and keep new ones waiting. Raises ServerError after `DRAIN_TIMEOUT`.

        `name` is that of the volume, for messages.
        """
        with self._condition:
            deadline = time.monotonic() + DRAIN_TIMEOUT
            if not self._condition.wait_for(lambda: not self._held, DRAIN_TIMEOUT):
                raise ServerError(name=name, message="another snapshot or close has not ended")
            self._held = True
            drained = self._condition.wait_for(lambda: not self._running, deadline - time.monotonic())
        try:
            if not drained:
                raise ServerError(name=name, message=f"its requests did not end within {DRAIN_TIMEOUT:g} s")
            yield
        finally:
            with self._condition:
                self._held = False
                self._condition.notify_all()

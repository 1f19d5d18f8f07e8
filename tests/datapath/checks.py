# SPDX-License-Identifier: BSD-2-Clause
"""What tests ask of a volume: that it has what a model has, that it refuses, that its store is whole."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from extstorage import fsck
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.session import Session
from extstorage.store import Store
from tests.datapath.model import Model
from tests.datapath.tap import Killed


def writing(data: bytes, offset: int) -> Callable[[Session | Model], None]:
    return lambda on: on.write(memoryview(data), offset)


def no_damage(store: Store) -> None:
    """Whatever died: a check finds nothing worse than leftovers, and its repair harms nothing."""
    damage = [finding for finding in fsck.check(store, repair=True) if finding.damage]
    assert not damage, damage


class polling:  # noqa: N801 - reads as a statement
    """The other server's helper thread, which yields the lock when it is asked to."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        deadline = time.monotonic() + 60
        with contextlib.suppress(Killed):
            while not self._ended.is_set() and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    self._session.poll()
                time.sleep(0.002)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def read(session: Session, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    session.readinto(memoryview(buffer), offset)
    return bytes(buffer)


def refuses(session: Session, kind: type[Exception]) -> None:
    try:
        session.write(memoryview(b"never"), 0)
    except kind:
        return
    raise AssertionError(f"it wrote, and should have raised {kind.__name__}")


def verify(session: Session, model: Model, name: str) -> None:
    """The whole content: each page that was ever written, and zeros between."""
    assert session.size == model.size, f"{name} has {session.size} bytes instead of {model.size}"
    position = 0
    for start in range(0, model.size, BLOCK):
        length = min(BLOCK, model.size - start)
        found, expected = read(session, start, length), model.read(start, length)
        if found != expected:
            position = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
            raise AssertionError(f"{name} differs at byte {start + position}")


def settle(session: Session, models: list[Model], name: str) -> None:
    """Each page is as one of the models allows; the first learns what it is."""
    for start in range(0, session.size, BLOCK):
        length = min(BLOCK, session.size - start)
        found = read(session, start, length)
        if found == models[0].read(start, length):
            continue
        for at in range(start, start + length, PAGE):
            page = found[at - start :][:PAGE]
            allowed = [content for model in models for content in model.allowed(at // PAGE)]
            assert is_one_of(page, allowed), f"page {at // PAGE} of {name} is wrong"
            models[0].write(page, at)


def is_one_of(page: bytes, allowed: list[bytes]) -> bool:
    """Whether each sector of a page is as in one of the contents."""
    if any(content.startswith(page) for content in allowed):
        return True
    sectors = range(0, len(page), SECTOR)
    return all(page[at : at + SECTOR] in [one[at : at + SECTOR] for one in allowed] for at in sectors)

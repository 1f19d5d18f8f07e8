# SPDX-License-Identifier: BSD-2-Clause
"""What tests of sessions share: two pages, a look, a death."""

from __future__ import annotations

from extstorage.names import PAGE
from extstorage.session import Session

A = memoryview(b"a" * PAGE)
B = memoryview(b"b" * PAGE)


def read(session: Session, offset: int = 0, length: int = PAGE) -> bytes:
    buffer = bytearray(length)
    session.readinto(memoryview(buffer), offset)
    return bytes(buffer)


def die(session: Session) -> None:
    """As after kill -9: only the lock goes."""
    assert session._lock is not None
    session._lock.release()

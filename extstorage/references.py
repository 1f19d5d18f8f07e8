# SPDX-License-Identifier: BSD-2-Clause
"""What Cyclades calls an image that is a file of Pithos: a map's name and a size. Pure; pithos.py reads it."""

from __future__ import annotations

import re
from typing import NamedTuple

from extstorage.names import LARGEST
from ganeti_plugin.errors import InputError

SCHEME = "pithosmap://"

#: A block's name, and an old map's.
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,88}", re.ASCII)


class BadReferenceError(InputError):
    template = "the origin {text!r} is not a file of Pithos: {reason}"


class Reference(NamedTuple):
    """A file of Pithos, as Cyclades names it. A size of 0 is unknown."""

    name: str
    size: int

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}/{self.size}"


def reference(origin: str, origin_size: int | None) -> Reference | None:
    """`pithosmap://NAME/SIZE`, or the name of a map with its size beside it, as Cyclades sends it; None otherwise.

    Raises BadReferenceError.
    """
    if not origin.startswith(SCHEME):
        return Reference(origin, _size(origin, origin_size)) if origin_size and _NAME.fullmatch(origin) else None
    name, slash, size = origin.removeprefix(SCHEME).rpartition("/")
    if not slash or not _NAME.fullmatch(name):
        raise BadReferenceError(text=origin[:200], reason="it must be pithosmap://NAME/SIZE")
    if not re.fullmatch(r"[0-9]{1,20}", size, re.ASCII):
        raise BadReferenceError(text=origin[:200], reason="its size is not a number")
    found = Reference(name, _size(origin, int(size)))
    if origin_size is not None and origin_size != found.size:
        raise BadReferenceError(text=origin[:200], reason=f"its size is not the origin_size {origin_size}")
    return found


def _size(origin: str, size: int) -> int:
    if not 0 < size <= LARGEST:
        raise BadReferenceError(text=origin[:200], reason=f"its size must be 1 to {LARGEST} bytes")
    return size

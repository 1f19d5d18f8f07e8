# SPDX-License-Identifier: BSD-2-Clause
"""Names and sizes that may become file names, unit names, socket paths and maps: judged once, here."""

from __future__ import annotations

import os

from extstorage.errors import BadNameError, BadSizeError

#: Bytes of a block, which is what maps, layers and content count in (and Pithos, whose blocks ours are); of a page,
#: which is what a layer has or has not; and of a sector, of which every size is a multiple.
BLOCK = 4 << 20
PAGE = 4096
SECTOR = 512
MEBIBYTE = 1 << 20

#: The name under which a block device asks for the volume. This export has the largest size there is, and its client
#: knows the volume's: so the device grows without a new connection. What is trimmed there reads as zeros, since loop
#: makes holes of requests for zeros.
GROWABLE_EXPORT = "growable"

#: Begins the names of what a publication needs for a while.
PUBLICATION = "publish-"

#: What a systemd instance name and a file name both take as it is. Nothing else is needed by Ganeti or Cyclades.
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

#: /run/snf-archipelago/<name>/control.sock must fit into the 107 characters of a socket address.
LONGEST_NAME = 72

#: Bytes of a volume: 64 TiB, whose map has 256 MiB of entries in memory. What a store can take may be less: one file
#: of ext4, and so a layer there, has at most 16 TiB (`Store.check_size`).
LARGEST = 1 << 46


def check_name(name: str, what: str = "the name", *, room: int = 0) -> str:
    """Return the name, or raise BadNameError that says which rule it breaks.

    `room`: characters that will be added to it, for names that are made of it for a while.
    """
    longest = LONGEST_NAME - room
    if not name or len(name) > longest:
        raise BadNameError(what=what, name=name[:100], reason=f"it must have 1 to {longest} characters")
    if not _ALLOWED.issuperset(name):
        raise BadNameError(what=what, name=name, reason="only letters, digits, '.', '_' and '-' are allowed")
    if not name[0].isalnum():
        raise BadNameError(what=what, name=name, reason="it must begin with a letter or digit")
    return name


def check_new_name(name: str, what: str = "the name") -> str:
    """The same for what an administrator makes: none of the names that a publication (publish.py) cleans away."""
    if check_name(name, what).startswith(PUBLICATION):
        reason = f"names that begin with {PUBLICATION!r} are those of unfinished images"
        raise BadNameError(what=what, name=name, reason=reason)
    return name


def token() -> str:
    """What nothing else is called, or ever was."""
    return os.urandom(8).hex()


def new_id() -> bytes:
    """The same for a volume: who writes its layers."""
    return os.urandom(16)


def is_store_name(text: str) -> bool:
    """Whether this can be the name of a store, of a pool or of a namespace."""
    return 0 < len(text) <= LONGEST_NAME and _ALLOWED.issuperset(text) and text[0].isalnum()


def check_size(size: int) -> int:
    """Return a size in bytes, or raise BadSizeError."""
    if size <= 0:
        raise BadSizeError(size=size, reason="it must be above zero")
    if size > LARGEST:
        raise BadSizeError(size=size, reason=f"it must be at most {LARGEST} bytes (64 TiB)")
    if size % SECTOR:
        raise BadSizeError(size=size, reason=f"it must be a multiple of {SECTOR} bytes")
    return size


def blocks_of(size: int) -> int:
    """How many blocks a volume of `size` bytes has."""
    return -(-size // BLOCK)

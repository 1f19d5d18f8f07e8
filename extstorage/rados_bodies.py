# SPDX-License-Identifier: BSD-2-Clause
"""Bodies of large maps in RADOS: objects that never change, so that clones and snapshots share them.

    head.NAME                   a small map; of a large one its header, behind the line that says where its body is
    body.GENERATION.PART        a part of a body; another map is another generation

Which bodies there may be is on record in the tables `names` and `bodies` (rados_store.py), as lines "GENERATION PARTS".
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

from extstorage.maps import MAGIC
from extstorage.names import BLOCK, token
from extstorage.rados_pool import Change, Objects

#: A map of more bytes has its body elsewhere.
INLINE = 64 << 10

#: What one object holds of a body. Larger objects would be slow to recover in the cluster.
PART = BLOCK
_MOST_PARTS = 1024
_ELSEWHERE = re.compile(rb"SNFBODY\n([0-9a-f]{16} [0-9]{1,4}) ([0-9a-f]{8})\n")
_NOTE = re.compile(rb"([0-9a-f]{16}) ([0-9]{1,4})")


class Body(NamedTuple):
    """Where the body of a large map is."""

    generation: str
    parts: int

    def __str__(self) -> str:
        return f"{self.generation} {self.parts}"

    def key(self, part: int) -> str:
        return f"body.{self.generation}.{part:04x}"

    @property
    def keys(self) -> list[str]:
        return [self.key(part) for part in range(self.parts)]

    def read(self, objects: Objects) -> Iterator[bytes]:
        """Its parts, several at a time. Raises NoObjectError when the map was replaced, and the body removed."""
        return objects.parallel(partial(read_part, objects), self.keys)

    def write(self, objects: Objects, data: memoryview) -> None:
        def put(part: int) -> None:
            objects.apply(self.key(part), Change().write_full(bytes(data[part * PART : part * PART + PART])))

        list(objects.parallel(put, range(self.parts)))

    def remove(self, objects: Objects) -> None:
        list(objects.parallel(objects.remove, self.keys))


def new_body(length: int) -> Body:
    """A place for so many bytes."""
    return Body(token(), -(-length // PART))


def read_part(objects: Objects, key: str) -> bytes:
    return objects.read(key, PART)


def head_of(body: Body, header: bytes) -> bytes:
    """What the head of a map is that has its body elsewhere."""
    where = str(body).encode()
    return b"SNFBODY\n%s %08x\n%s" % (where, zlib.crc32(where), header)


def split_head(head: bytes) -> tuple[bytes, Body | None]:
    """The bytes of the map that are in the head, and where the others are. Raises ValueError if it does not say so."""
    if head.startswith(MAGIC):
        return head, None
    found = _ELSEWHERE.match(head)
    if found is None or zlib.crc32(found[1]) != int(found[2], 16):
        raise ValueError("neither a map nor where one is")
    [body] = bodies_in(found[1])
    if not 0 < body.parts <= _MOST_PARTS:
        raise ValueError("no map has so many parts")
    return head[found.end() :], body


def note_of(bodies: Iterable[Body]) -> bytes:
    """As a table has them."""
    return "\n".join(map(str, bodies)).encode()


def bodies_in(note: bytes) -> list[Body]:
    return [Body(generation.decode(), int(parts)) for generation, parts in _NOTE.findall(note)]


class Beginning:
    """The first bytes of a map, read as they are asked for."""

    def __init__(self, objects: Objects, data: bytes, body: Body | None) -> None:
        self._objects = objects
        self._data = data
        self._body = body
        self._at = 0

    def read(self, length: int) -> bytes:
        found, self._data = self._data[:length], self._data[length:]
        while len(found) < length and self._body and self._at < self._body.parts * PART:
            part, offset = divmod(self._at, PART)
            piece = self._objects.read(self._body.key(part), min(length - len(found), PART - offset), offset)
            if not piece:
                break
            found += piece
            self._at += len(piece)
        return found

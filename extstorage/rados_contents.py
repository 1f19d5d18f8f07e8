# SPDX-License-Identifier: BSD-2-Clause
"""Content blocks in RADOS: an object for each, and tables in which they are entered before they are made.

content.DIGEST              a content block; its version tells whether it was touched
contents.XX                 tables: the digests whose first byte is XX, modulo 64, and who put them last
"""

# ruff: noqa: ARG002 - `store.py` prescribes the arguments

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator

from extstorage.content_layer import ContentLayer
from extstorage.digests import Digests
from extstorage.errors import BrokenError
from extstorage.names import PAGE, token
from extstorage.rados_errors import ChangedObjectError, NoObjectError
from extstorage.rados_locks import FENCE_SECONDS
from extstorage.rados_pool import Change, Objects

#: Tables: with 16 TiB of content, 65000 entries in each.
_SHARDS = 64

#: Of a content block that is not there any more, and since when.
_GONE = re.compile(rb"gone ([0-9]{1,15})")
_CONTENT = re.compile(r"content\.([0-9a-f]{64})", re.ASCII)


class ContentBlock(ContentLayer):
    """The object `key`; it may be shorter than a block, and reads as zeros behind its end."""

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects = objects
        self._key = key
        self._size = -1

    def readinto(self, index: int, offset: int, buffer: memoryview) -> None:
        try:
            self._objects.readinto(self._key, offset, buffer)
        except NoObjectError:
            raise self._missing() from None

    def holes(self, index: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        if self._size < 0:
            try:
                self._size = self._objects.size(self._key)
            except NoObjectError:
                raise self._missing() from None
        full = max(0, min(length, -(-self._size // PAGE) * PAGE - offset))
        if full:
            yield full, False
        if length > full:
            yield length - full, True

    def plain_object(self, index: int) -> str:
        return self._key

    def _missing(self) -> BrokenError:
        return BrokenError(path=self._key, reason="the content block is missing")


class RadosContents:
    """The content blocks of one store. `objects` is asked each time, for a client may be replaced."""

    def __init__(self, objects: Callable[[], Objects]) -> None:
        self._objects = objects

    def block(self, digest: bytes) -> ContentBlock:
        return ContentBlock(self._objects(), _key(digest))

    def put(self, digest: bytes, data: memoryview) -> bool:
        objects, key = self._objects(), _key(digest)
        while True:
            with contextlib.suppress(NoObjectError, ChangedObjectError):
                version = objects.version(key)
                objects.apply(key, Change().at_version(version).set_attribute("touched", b""))
                return False
            self.enter(digest)
            with contextlib.suppress(ChangedObjectError):
                objects.apply(key, Change().exclusive().write_full(bytes(data)))
                return True

    def enter(self, digest: bytes) -> None:
        self._objects().put_entry(_shard(digest), digest.hex(), token().encode())

    def _tables(self) -> Iterator[dict[str, bytes]]:
        return (self._objects().entries(_shard(bytes([shard]))) for shard in range(_SHARDS))

    def digests(self) -> Iterator[list[bytes]]:
        """What is entered, table by table; a block may not be there yet."""
        for entries in self._tables():
            yield [bytes.fromhex(entry) for entry, value in entries.items() if not _GONE.fullmatch(value)]

    def versions(self) -> Iterator[tuple[bytes, object]]:
        """All blocks, each with a value that changes when it is touched."""
        for entries in self._tables():
            digests = [bytes.fromhex(entry) for entry in sorted(entries)]
            for digest, version in zip(digests, self._objects().parallel(self.version, digests), strict=True):
                value = entries[digest.hex()]
                if version is not None or not _may_come(value):
                    yield digest, (version, value)

    def walk(self) -> Iterator[tuple[bytes, bool]]:
        """One question to the cluster for hundreds of objects, where `versions` asks about each."""
        entered = Digests()
        for entries in self._tables():
            for entry in entries:
                entered.add(bytes.fromhex(entry))
        for key in self._objects().keys():  # noqa: SIM118 - it is no mapping
            if found := _CONTENT.fullmatch(key):
                digest = bytes.fromhex(found[1])
                yield digest, digest in entered or self._is_entered(digest)

    def _is_entered(self, digest: bytes) -> bool:
        """Of a block that may have come, or gone, since the tables were read: as long as it is there, its entry is."""
        is_there = self.version(digest) is not None
        return not is_there or self._objects().entry(_shard(digest), digest.hex()) is not None

    def version(self, digest: bytes) -> int | None:
        """None if it is not there."""
        try:
            return self._objects().version(_key(digest))
        except NoObjectError:
            return None

    def used(self, digest: bytes) -> int:
        """In bytes; 0 if it is not there."""
        try:
            return self._objects().size(_key(digest))
        except NoObjectError:
            return 0

    def remove(self, digest: bytes, version: object) -> int:
        """Unless it was touched since it had this version; answers with the bytes freed.

        The entry stays for a day, for one who died, or had no answer, may have sent the block before: it may come
        at any time, shut out or not, and a collection must find it then.
        """
        assert isinstance(version, tuple)
        at, value = version
        freed = self.used(digest)
        if at is None and freed:
            return 0
        try:
            if at is not None:
                self._objects().apply(_key(digest), Change().at_version(at).remove(), force=True)
        except NoObjectError:
            freed = 0
        except ChangedObjectError:
            return 0
        # One who is about to put it again has changed the entry.
        if at is None and _GONE.fullmatch(value):
            self._objects().drop_entry(_shard(digest), digest.hex(), value)
        else:
            self._objects().replace_entry(_shard(digest), digest.hex(), value, b"gone %d" % time.time())
        return freed


def _may_come(entry: bytes) -> bool:
    """Whether a block that is not there may have been sent so late that it comes yet."""
    gone = _GONE.fullmatch(entry)
    return gone is not None and abs(time.time() - int(gone[1])) < FENCE_SECONDS


def _key(digest: bytes) -> str:
    return f"content.{digest.hex()}"


def _shard(digest: bytes) -> str:
    return f"contents.{digest[0] % _SHARDS:02x}"

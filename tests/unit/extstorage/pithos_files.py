# SPDX-License-Identifier: BSD-2-Clause
"""Writes the files of a Pithos store, from its documentation and not from our reader: layouts, names, map formats."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

MIB = 1 << 20
BLOCK = 4 * MIB
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def blocks_of(data: bytes) -> list[bytes]:
    return [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]


def hash_of_block(block: bytes) -> str:
    return hashlib.sha256(block.rstrip(b"\0")).hexdigest()


def hash_of_file(hashes: Sequence[str]) -> str:
    """hashmap.py: pad to a power of two with empty hashes, then fold."""
    nodes = [bytes.fromhex(text) for text in hashes]
    if not nodes:
        return EMPTY
    while len(nodes) & (len(nodes) - 1):
        nodes.append(b"\0" * 32)
    while len(nodes) > 1:
        nodes = [hashlib.sha256(left + right).digest() for left, right in zip(nodes[::2], nodes[1::2], strict=True)]
    return nodes[0].hex()


class PithosFiles:
    """A store in a directory; `filed` lays files out as Archipelago's filed does."""

    def __init__(self, directory: Path, *, filed: bool = False) -> None:
        self.directory = directory
        self._filed = filed

    def path(self, kind: str, name: str) -> Path:
        key = hashlib.sha256(name.encode()).hexdigest() if self._filed else name
        return self.directory / kind / key[0:2] / key[2:4] / key[4:6] / name

    def put(self, kind: str, name: str, data: bytes) -> None:
        path = self.path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def upload(self, data: bytes) -> list[str]:
        """The blocks as a client sends them: as they are, short or with zeros at the end."""
        names = []
        for block in blocks_of(data):
            name = hash_of_block(block)
            names.append(name)
            if name != EMPTY:
                self.put("blocks", name, block)
        return names

    def file_v0(self, data: bytes) -> str:
        names = self.upload(data)
        name = hash_of_file(names)
        self.put("maps", name, b"".join(bytes.fromhex(text) for text in names))
        return name

    def file_v1(self, name: str, data: bytes, *, writable: bool = False) -> None:
        flag = b"\1" if writable else b"\0"
        entries = b"".join(flag + bytes.fromhex(text) for text in self.upload(data))
        self.put("maps", name, struct.pack("<L", 1) + struct.pack("<Q", len(data)) + entries)

    def file_v2(self, name: str, data: bytes) -> None:
        self.map_v2(name, len(data), [v2_entry(text) for text in self.upload(data)])

    def map_v2(
        self,
        name: str,
        size: int,
        entries: Sequence[bytes],
        *,
        signature: bytes = b"AMF.",
        version: int = 2,
        block_size: int = BLOCK,
        flags: int = 1,
    ) -> None:
        header = signature + struct.pack(">L", version) + struct.pack(">Q", size) + struct.pack(">L", block_size)
        header += struct.pack(">L", flags) + struct.pack(">Q", 1)
        self.put("maps", name, header.ljust(512, b"\0"))
        for chunk in range(0, len(entries), 32768):
            self.put("maps", f"{name}_{chunk // 32768:016x}", b"".join(entries[chunk : chunk + 32768]))


def v2_entry(name: str, flags: int | None = None) -> bytes:
    if flags is None:
        flags = 4 if name == EMPTY else 0
    return struct.pack("<B", flags) + struct.pack("<L", len(name)) + name.encode().ljust(123, b"\0")

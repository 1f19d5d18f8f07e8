# SPDX-License-Identifier: BSD-2-Clause
"""Writes an initramfs: the kernel's "newc" cpio format, uncompressed, the same bytes for the same content."""

from __future__ import annotations

import dataclasses
import stat

TRAILER = "TRAILER!!!"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A file, directory or symbolic link; `mode` includes the type, `data` is a link's target."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path=path, mode=stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(path=path, mode=stat.S_IFREG | mode, data=data)


def link(path: str, target: str) -> Entry:
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(path=path, mode=stat.S_IFCHR | mode, device=(major, minor))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _record(number: int, entry: Entry) -> bytes:
    name = entry.path.lstrip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(f"{field:08X}".encode() for field in fields)
    return _padded(header + name) + _padded(entry.data)


def archive(entries: dict[str, Entry]) -> bytes:
    """The archive, every path after the directories that it is in; missing ones are made."""
    complete = dict(entries)
    for path in entries:
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            parent = "/" + "/".join(parts[:depth])
            complete.setdefault(parent, directory(parent))
    records = [_record(number, complete[path]) for number, path in enumerate(sorted(complete), start=1)]
    return b"".join(records) + _record(0, Entry(path=TRAILER, mode=0))

# SPDX-License-Identifier: BSD-2-Clause
"""Sees every change that this process makes to files under one directory: to stop it there, or to play it again.

It stands in for the functions of `os` and of `file_system.py` that change files, and knows the content of each page at
any time. A stream that writes past `os` (write_atomically) is read when it is synced or renamed.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from extstorage import file_system
from extstorage.names import PAGE

_ZEROS = bytes(PAGE)


class Node:
    """A file or a directory, whatever it is called now."""

    def __init__(self, directory: bool) -> None:
        self.entries: dict[str, Node] | None = {} if directory else None
        self.pages: dict[int, bytes] = {}
        self.size = 0


class Write(NamedTuple):
    """Pages of a file as they are now, and its size."""

    node: Node
    pages: dict[int, bytes]
    size: int


class Sync(NamedTuple):
    """Everything before this is on the disk: a file's content or a directory's names."""

    node: Node


class Loss(NamedTuple):
    """A sync failed: what was written before is clean now, on the disk or not. No later sync makes up for it."""

    node: Node


class Names(NamedTuple):
    """One change of a directory: names that go, names that come."""

    node: Node
    gone: tuple[str, ...]
    come: tuple[tuple[str, Node], ...]


Event = Write | Sync | Loss | Names


class Killed(BaseException):
    """What a process feels that is killed: nothing. No handler of ordinary errors sees it."""


class Reaper:
    """Kills at the change that is `left` changes away; from then on the process can change nothing, until `revive`."""

    def __init__(self) -> None:
        self.left = -1
        self.dead = False

    def aim(self, left: int) -> None:
        self.left = left

    def revive(self) -> None:
        self.dead = False
        self.left = -1

    def allow(self, about_to_die: Callable[[], None] = lambda: None, what: str = "") -> None:
        """Called before each change, a `what`; what it leaves half done is the caller's."""
        self.check()
        self.left -= 1
        if self.left == -1:
            about_to_die()
            self.dead = True
        self.check()

    def check(self) -> None:
        if self.dead:
            raise Killed


class Saboteur(Reaper):
    """Lets one change fail, as a full or failing disk does; the process goes on."""

    def allow(self, about_to_die: Callable[[], None] = lambda: None, what: str = "") -> None:
        self.left -= 1
        if self.left == -1:
            about_to_die()
            raise OSError(errno.ENOSPC, "no space, just once")


class FailingDisk(Reaper):
    """Lets changes fail as chance decides: those in `kinds`, with these errors; with `lasts`, all since the first."""

    def __init__(self, chance: Random, kinds: Mapping[str, int], rate: float, *, lasts: bool) -> None:
        super().__init__()
        self._chance = chance
        self._kinds = kinds
        self._rate = rate
        self._lasts = lasts
        self._breaks = True
        self.is_failing = False
        self.count = 0

    def allow(self, about_to_die: Callable[[], None] = lambda: None, what: str = "") -> None:
        if not self._breaks or what not in self._kinds:
            return
        if not self.is_failing and self._chance.random() >= self._rate:
            return
        self.is_failing = self._lasts
        self.count += 1
        about_to_die()
        raise OSError(self._kinds[what], os.strerror(self._kinds[what]))

    def mend(self) -> None:
        self.is_failing = self._breaks = False

    def break_again(self) -> None:
        self.is_failing, self._breaks = False, True


class Tap:
    """See the module."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, reaper: Reaper | None = None) -> None:
        self.root = Node(True)
        self.events: list[Any] = []
        self._path = str(root)
        self._reaper = reaper or Reaper()
        self._mutex = threading.RLock()
        self._nodes: dict[int, Node] = {}
        self._streams: set[Node] = set()
        self._real: dict[str, Any] = {}
        for name in ("open", "close", "pwrite", "write", "fsync", "fdatasync", "ftruncate", "mkdir", "rmdir"):
            self._replace(monkeypatch, os, name, name)
        for name, ours in (("rename", "rename"), ("replace", "rename"), ("unlink", "unlink"), ("remove", "unlink")):
            self._replace(monkeypatch, os, name, ours)
        self._replace(monkeypatch, os, "link", "link")
        self._replace(monkeypatch, file_system, "punch_hole", "punch_hole")
        monkeypatch.setattr(file_system, "syncfs", lambda _descriptor: self.sync_all())

    def _replace(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, ours: str) -> None:
        self._real[ours] = getattr(module, name)
        monkeypatch.setattr(module, name, getattr(self, f"_{ours}"))

    # Where things are.

    def _parts(self, path: Any, dir_fd: int | None = None) -> tuple[str, ...] | None:
        """The path below the root, or None for what is elsewhere."""
        if isinstance(path, int):
            return None
        text = os.fsdecode(os.fspath(path))
        if dir_fd is not None and not text.startswith("/"):
            text = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{text}"
        if text == self._path:
            return ()
        return tuple(text[len(self._path) + 1 :].split("/")) if text.startswith(self._path + "/") else None

    def _find(self, parts: tuple[str, ...]) -> Node | None:
        node: Node | None = self.root
        for part in parts:
            if node is None or node.entries is None:
                return None
            node = node.entries.get(part)
        return node

    def _parent(self, parts: tuple[str, ...]) -> Node:
        found = self._find(parts[:-1])
        assert found is not None, parts
        return found

    def _names(self, node: Node, gone: tuple[str, ...], come: tuple[tuple[str, Node], ...]) -> None:
        assert node.entries is not None
        for name in gone:
            node.entries.pop(name, None)
        node.entries.update(come)
        self.events.append(Names(node, gone, come))

    # Files.

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        parts = self._parts(path, dir_fd)
        if parts is None:
            descriptor = int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
            # A stream closes its descriptor past `os`, and the number comes again.
            self._nodes.pop(descriptor, None)
            return descriptor
        with self._mutex:
            node = self._find(parts)
            self._reaper.check()
            changes = (node is None and flags & os.O_CREAT) or (node is not None and flags & os.O_TRUNC)
            if changes:
                self._reaper.allow(what="make")
            descriptor = int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
            if node is None:
                node = Node(stat.S_ISDIR(os.fstat(descriptor).st_mode))
                self._names(self._parent(parts), (), ((parts[-1], node),))
            elif flags & os.O_TRUNC:
                self._resize(node, 0)
            if flags & os.O_ACCMODE == os.O_WRONLY:
                self._streams.add(node)
            self._nodes[descriptor] = node
            return descriptor

    def _close(self, descriptor: int) -> None:
        with self._mutex:
            self._nodes.pop(descriptor, None)
            self._real["close"](descriptor)

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        with self._mutex:
            node = self._nodes.get(descriptor)
            if node is not None:
                # A process may die in the middle of a long write, between two pages.
                half = max(0, (offset + len(data) // 2) // PAGE * PAGE - offset)
                self._reaper.allow(lambda: self._halve(node, descriptor, data[:half], offset), "write")
            count = int(self._real["pwrite"](descriptor, data, offset))
            if node is not None:
                self._record(node, bytes(data[:count]), offset)
            return count

    def _halve(self, node: Node, descriptor: int, data: Any, offset: int) -> None:
        self._real["pwrite"](descriptor, data, offset)
        self._record(node, bytes(data), offset)

    def _write(self, descriptor: int, data: Any) -> int:
        node = self._nodes.get(descriptor)
        if node is not None:
            self._reaper.allow(what="write")
            self._streams.add(node)
        return int(self._real["write"](descriptor, data))

    def _record(self, node: Node, data: bytes, offset: int) -> None:
        changed = {}
        done = 0
        while done < len(data):
            page, inside = divmod(offset + done, PAGE)
            part = data[done : done + PAGE - inside]
            old = node.pages.get(page, _ZEROS)
            changed[page] = node.pages[page] = old[:inside] + part + old[inside + len(part) :]
            done += len(part)
        node.size = max(node.size, offset + len(data))
        self.events.append(Write(node, changed, node.size))

    def _resize(self, node: Node, size: int) -> None:
        changed = {page: _ZEROS for page in node.pages if page * PAGE >= size}
        inside = size % PAGE
        if inside and size // PAGE in node.pages:
            changed[size // PAGE] = node.pages[size // PAGE][:inside].ljust(PAGE, b"\0")
        node.pages.update(changed)
        node.size = size
        self.events.append(Write(node, changed, size))

    def _ftruncate(self, descriptor: int, size: int) -> None:
        with self._mutex:
            node = self._nodes.get(descriptor)
            if node is not None:
                self._reaper.allow(what="write")
            self._real["ftruncate"](descriptor, size)
            if node is not None and size != node.size:
                self._resize(node, size)

    def _punch_hole(self, descriptor: int, offset: int, length: int) -> None:
        with self._mutex:
            node = self._nodes[descriptor]
            self._reaper.allow(what="punch")
            self._real["punch_hole"](descriptor, offset, length)
            first, end = offset // PAGE, (offset + length) // PAGE
            changed = {page: _ZEROS for page in node.pages if first <= page < end}
            node.pages.update(changed)
            self.events.append(Write(node, changed, node.size))

    def _catch_up(self, node: Node, path: str) -> None:
        """See what a stream has written."""
        if node in self._streams:
            data = Path(path).read_bytes()
            self._record(node, data, 0)
            if len(data) < node.size:
                self._resize(node, len(data))

    def _fsync(self, descriptor: int, how: str = "fsync") -> None:
        with self._mutex:
            node = self._nodes.get(descriptor)
            if node is not None:
                self._catch_up(node, f"/proc/self/fd/{descriptor}")
                self._reaper.allow(lambda: self.events.append(Loss(node)), "sync")
            self._real[how](descriptor)
            if node is not None:
                self.events.append(Sync(node))

    def _fdatasync(self, descriptor: int) -> None:
        self._fsync(descriptor, "fdatasync")

    def sync_all(self) -> None:
        """What syncfs(2) does."""
        with self._mutex:
            self._reaper.allow(lambda: self._sync_below(self.root, self._path, Loss), "sync")
            self._sync_below(self.root, self._path)

    def _sync_below(self, node: Node, path: str, how: type[Sync | Loss] = Sync) -> None:
        for name, child in (node.entries or {}).items():
            self._sync_below(child, f"{path}/{name}", how)
        self._catch_up(node, path)
        self.events.append(how(node))

    # Names.

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        parts = self._parts(path, dir_fd)
        with self._mutex:
            if parts:
                self._reaper.allow(what="make")
            self._real["mkdir"](path, mode, dir_fd=dir_fd)
            if parts:
                self._names(self._parent(parts), (), ((parts[-1], Node(True)),))

    def _rename(self, old: Any, new: Any) -> None:
        parts, target = self._parts(old), self._parts(new)
        if not parts or not target:
            self._real["rename"](old, new)
            return
        with self._mutex:
            self._reaper.allow(what="rename")
            node, source, goal = self._find(parts), self._parent(parts), self._parent(target)
            if node is None:
                # Made past `os`, such as by Path.write_text.
                node = Node(False)
                self._streams.add(node)
            self._catch_up(node, os.fspath(old))
            self._real["rename"](old, new)
            if source is goal:
                self._names(source, (parts[-1],), ((target[-1], node),))
            else:
                self._names(goal, (), ((target[-1], node),))
                self._names(source, (parts[-1],), ())

    def _link(self, old: Any, new: Any) -> None:
        parts, target = self._parts(old), self._parts(new)
        assert parts
        assert target
        with self._mutex:
            self._reaper.allow(what="make")
            self._real["link"](old, new)
            node = self._find(parts)
            assert node is not None
            self._names(self._parent(target), (), ((target[-1], node),))

    def _unlink(self, path: Any, *, dir_fd: int | None = None, how: str = "unlink") -> None:
        parts = self._parts(path, dir_fd)
        with self._mutex:
            if parts:
                self._reaper.allow(what="remove")
            self._real[how](path, dir_fd=dir_fd)
            if parts:
                self._names(self._parent(parts), (parts[-1],), ())

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._unlink(path, dir_fd=dir_fd, how="rmdir")

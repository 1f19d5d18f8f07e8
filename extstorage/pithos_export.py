# SPDX-License-Identifier: BSD-2-Clause
"""Writing a hashed snapshot as a file of Pithos: its map and its blocks, in the layout of Pithos' own directories.

Blocks that are there already are left alone, so that several exports share a directory, and one that was interrupted
goes on when it is repeated. The map is last: who finds it finds the blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from extstorage.content import NOTHING, Pipeline, length_of, root_of
from extstorage.errors import BrokenError, NoSuchVolumeError
from extstorage.maps import Source, VolumeMap
from extstorage.names import BLOCK, check_name
from extstorage.progress import Progress
from extstorage.references import Reference
from extstorage.store import Store
from ganeti_plugin.errors import InputError, StateError
from ganeti_plugin.files import fsync_directory

_AHEAD = 8
_FILE_MODE = 0o644
_FOLDER_MODE = 0o755


class NotHashedError(InputError):
    template = "{name!r} has blocks that are not named by their content"
    hint = "archipelago snapshot hash {name}"


class ExportError(StateError):
    template = "{path} can't be written: {reason}"
    hint = "the directory must be the store's user's, which is the setting archipelago.user"


def export(store: Store, name: str, directory: Path, progress: Progress) -> Reference:
    """Answers with what the file is called. A shared lock keeps the snapshot from being removed meanwhile."""
    check_name(name)
    head = store.read_heads(name)
    if not head.read_only:
        raise NoSuchVolumeError(what="snapshot or image", name=name, store=store.title)
    lock = store.lock_volume(name, shared=True, patience=store.patience)
    try:
        volume_map = store.read_map(name)
        digests = _digests(name, volume_map)
        with _writing(directory):
            _write_blocks(store, sorted(set(digests) - {NOTHING}), directory / "blocks", progress)
            root = root_of(digests).hex()
            _write(directory / "maps", root, memoryview(b"".join(digests)))
    finally:
        lock.release()
    progress(100)
    return Reference(root, volume_map.size)


def _digests(name: str, volume_map: VolumeMap) -> list[bytes]:
    found = []
    for number in range(volume_map.blocks):
        layers = volume_map.layers(number)
        if len(layers) > 1 or (layers and not layers[0].is_content):
            raise NotHashedError(name=name)
        found.append(layers[0].owner if layers else NOTHING)
    return found


def _write_blocks(store: Store, digests: list[bytes], directory: Path, progress: Progress) -> None:
    def copy(digest: bytes) -> None:
        if not _path(directory, digest.hex()).exists():
            buffer = memoryview(bytearray(BLOCK))
            store.layer(Source(digest, 0)).readinto(0, 0, buffer)
            data = buffer[: length_of(buffer)]
            if hashlib.sha256(data).digest() != digest:
                raise BrokenError(path=f"block {digest.hex()}", reason="its bytes are not those that its name says")
            _write(directory, digest.hex(), data)

    with Pipeline(0, _AHEAD) as pipeline:
        for number, _ in enumerate(pipeline.ordered(copy, digests), 1):
            progress(min(99, number * 100 // len(digests)))


def _path(directory: Path, name: str) -> Path:
    return directory / name[:2] / name[2:4] / name[4:6] / name


def _write(directory: Path, name: str, data: memoryview) -> None:
    """A file appears under its name when it is complete and durable."""
    path = _path(directory, name)
    if path.exists():
        return
    path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    new = path.parent / f".{name}.{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(new, flags, _FILE_MODE), "wb", buffering=0) as stream:
            while data:
                data = data[stream.write(data) :]
            os.fsync(stream.fileno())
        os.rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    for folder in (path.parent, *path.parent.parents[:3]):
        fsync_directory(folder)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(path=error.filename or directory, reason=error.strerror) from None

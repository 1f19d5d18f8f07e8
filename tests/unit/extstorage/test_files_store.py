# SPDX-License-Identifier: BSD-2-Clause
"""A directory becomes a files store only if it is empty, and is taken for one only if it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from extstorage import catalog, fsck, gc, scrub
from extstorage.files_store import FilesStore, create_store, open_store
from extstorage.names import BLOCK
from ganeti_plugin.errors import StateError


@pytest.mark.parametrize("content", ["", "{}", '{"kind": "snf-archipelago", "version": 99}', "[1]"])
def test_a_foreign_directory_is_no_store(tmp_path: Path, content: str) -> None:
    with pytest.raises(StateError):
        open_store(tmp_path)
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(StateError):
        create_store(tmp_path)
    (tmp_path / "store.json").unlink()
    (tmp_path / "precious").touch()
    with pytest.raises(StateError, match="precious"):
        create_store(tmp_path)
    assert isinstance(create_store(tmp_path / "new"), FilesStore)


@pytest.mark.parametrize("place", ["maps", "data", "content", "content/00", "."])
def test_a_file_that_somebody_left_there_disturbs_nobody(tmp_path: Path, place: str) -> None:
    store = create_store(tmp_path / "store")
    catalog.create_volume(store, "vol", BLOCK)
    folder = tmp_path / "store" / place
    folder.mkdir(exist_ok=True)
    stray = folder / "notes.txt"
    stray.write_text("not ours")
    assert list(store.names()) == ["vol"]
    assert not store.exists("notes.txt")
    assert fsck.check(store) == []
    assert not scrub.scrub(store, lambda *_: None).damage
    assert gc.collect(store).maps == 1
    assert stray.read_text() == "not ours"

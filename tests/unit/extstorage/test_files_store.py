# SPDX-License-Identifier: BSD-2-Clause
"""A directory becomes a files store only if it is empty, and is taken for one only if it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from extstorage.files_store import FilesStore, create_store, open_store
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

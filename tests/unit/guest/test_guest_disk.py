# SPDX-License-Identifier: BSD-2-Clause
"""The pure parts of the image builder."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from tests.guest import images
from tests.guest.disk import MIB, Layout, boot_configuration, copy_sparse
from tests.guest.small import cpio


def test_the_boot_loader_waits_for_nobody() -> None:
    root = uuid.UUID("00000000-0000-4000-8000-000000000001")
    text = boot_configuration(Layout(size=MIB, label="x", uuid=root, append="quiet"))
    assert "TIMEOUT 0" in text
    assert f"APPEND root=UUID={root} ro quiet\n" in text


def test_cpio_is_padded_to_four_bytes_and_ends_with_the_trailer() -> None:
    archive = b"".join(cpio([("a", 0o100644, b"12345"), ("dir", 0o040755, b"")]))
    assert len(archive) % 4 == 0
    assert archive.startswith(b"070701")
    assert archive.count(b"070701") == 3
    assert b"TRAILER!!!" in archive[-16:]


def test_a_sparse_copy_is_equal_and_keeps_its_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as stream:
        stream.truncate(8 * MIB)
        stream.seek(5 * MIB)
        stream.write(b"data")
        stream.seek(6 * MIB)
        stream.write(bytes(MIB))
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert os.stat(target).st_blocks * 512 <= MIB + 65536


def test_an_image_without_its_manifest_is_not_current(tmp_path: Path) -> None:
    assert not images.is_current("bookworm", tmp_path)
    path = images.path_of("bookworm", is_small=True, cache=tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"x")
    path.with_suffix(".json").write_text("{}")
    assert images.manifest_of(path) is None


def test_a_change_of_the_release_changes_the_recipe() -> None:
    assert images.recipe_of("bookworm") != images.recipe_of("trixie")
    assert images.path_of("bookworm", is_small=False).name == "debian-12.raw"
    assert images.path_of("bookworm", is_small=True).name == "small.raw"

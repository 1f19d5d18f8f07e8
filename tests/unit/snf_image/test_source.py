# SPDX-License-Identifier: BSD-2-Clause
"""Local images: opened once, a regular file of the directory, of the format that its name declares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ganeti_plugin.containers import Format, ImageRefusedError
from snf_image import source
from snf_image.source import ChangedError, SourceError


def test_null_is_nothing(tmp_path: Path) -> None:
    with source.opened("null", tmp_path) as image:
        assert image is None


def test_raw(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(4096))
    with source.opened("a.raw", tmp_path) as image:
        assert image is not None
        assert (image.verdict.format, image.verdict.virtual_size) == (Format.RAW, 4096)
        image.check_unchanged()


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory", "hard link", "missing"])
def test_what_is_not_a_file_of_the_directory(tmp_path: Path, kind: str) -> None:
    """H14."""
    outside, name = tmp_path / "outside", tmp_path / "images" / "x"
    name.parent.mkdir()
    outside.write_bytes(bytes(4096))
    match kind:
        case "link":
            name.symlink_to(outside)
        case "dangling":
            name.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(name)
        case "directory":
            name.mkdir()
        case "hard link":
            os.link(outside, name)
    with pytest.raises(SourceError), source.opened("x", name.parent):
        pass


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".", ".."])
def test_no_way_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError), source.opened(name, tmp_path):
        pass


def test_name_and_content_must_agree(tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_bytes(bytes(4096))
    (tmp_path / "b.raw").write_bytes(b"QFI\xfb\0\0\0\x03" + bytes(4088))
    for name in ("a.qcow2", "b.raw"):
        with pytest.raises(ImageRefusedError), source.opened(name, tmp_path):
            pass


def test_swapped_or_grown_image_is_noticed(tmp_path: Path) -> None:
    """H15: the open descriptor stays with the file that was judged, and a change of that file is noticed."""
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(4096))
    with source.opened("a.raw", tmp_path) as image:
        assert image is not None
        (tmp_path / "b").write_bytes(b"x" * 4096)
        os.replace(tmp_path / "b", path)
        assert os.pread(image.fd, 1, 0) == b"\0"
    with source.opened("a.raw", tmp_path) as image:
        assert image is not None
        with path.open("ab") as stream:
            stream.write(b"more")
        with pytest.raises(ChangedError):
            image.check_unchanged()

# SPDX-License-Identifier: BSD-2-Clause
"""Where disks are: paths, NBD URIs in both spellings with QEMU's options behind, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snf_image.targets import Kind, TargetError, TargetStateError, opened, place, uri_of


@pytest.mark.parametrize(
    ("uri", "path", "export"),
    [
        ("nbd+unix:///?socket=/run/v/nbd.sock,file.reconnect-delay=30", "/run/v/nbd.sock", ""),
        ("nbd+unix:///vol?socket=/run/v/nbd.sock", "/run/v/nbd.sock", "vol"),
        ("nbd:unix:/run/v/nbd.sock", "/run/v/nbd.sock", ""),
        ("nbd:unix:/run/v/nbd.sock:exportname=vol", "/run/v/nbd.sock", "vol"),
    ],
)
def test_nbd(uri: str, path: str, export: str) -> None:
    where = place(0, None, uri)
    assert (where.kind, where.path, where.export) == (Kind.NBD, path, export)
    assert place(0, None, uri_of(where)) == where


@pytest.mark.parametrize(
    "uri",
    ["rbd:pool/x", "nbd://host/x", "nbd+unix://host/?socket=/x", "nbd+unix:///", "nbd+unix:///?socket=x", "json:{}"],
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(TargetError, match="not one of a local NBD server"):
        place(0, None, uri)


def test_the_path_is_preferred() -> None:
    assert place(0, "/dev/loop1", "nbd:unix:/x").kind is Kind.DEVICE


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    other = tmp_path / "other"
    os.link(path, other)
    with opened(place(0, str(path), None)) as target, opened(place(1, str(other), None)) as same:
        assert (target.place.kind, target.size) == (Kind.FILE, 4096)
        assert target.identity == same.identity


def test_what_is_no_disk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TargetError, match="neither"), opened(place(0, str(tmp_path / "fifo"), None)):
        pass
    with pytest.raises(TargetStateError, match="No such file"), opened(place(0, str(tmp_path / "gone"), None)):
        pass
    with pytest.raises(TargetStateError, match="No such file"), opened(place(0, None, f"nbd:unix:{tmp_path}/gone")):
        pass

# SPDX-License-Identifier: BSD-2-Clause
"""What `verify` refuses. Building needs the real packages: tests/real/snf_image/test_helper.py."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from snf_image import builder


def described(data: bytes) -> builder.BuiltFile:
    return builder.BuiltFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    manifest = builder.Manifest(
        kernel=described(b"kernel"),
        initrd=described(b"initrd"),
        kernel_release="6.1.0-1-cloud-amd64",
        python_version="3.11.2",
        arguments="quiet",
    )
    (tmp_path / "manifest.json").write_bytes(manifest.encoded())
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_bytes(name.encode())
        (tmp_path / name).chmod(0o644)
    return tmp_path


def test_what_was_built_is_accepted(helper: Path) -> None:
    assert builder.verify(helper).arguments == "quiet"


def test_a_missing_file(helper: Path) -> None:
    (helper / "initrd").unlink()
    with pytest.raises(builder.HelperMissingError, match="snf-image helper build"):
        builder.verify(helper)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(builder.HelperMissingError):
        builder.verify(tmp_path / "none")


@pytest.mark.parametrize("data", [b"kernex", b"kernel+"])
def test_other_content(helper: Path, data: bytes) -> None:
    (helper / "kernel").write_bytes(data)
    with pytest.raises(builder.HelperDamagedError, match="kernel"):
        builder.verify(helper)


def test_a_writable_file(helper: Path) -> None:
    (helper / "kernel").chmod(0o666)
    with pytest.raises(builder.HelperDamagedError, match="others may write"):
        builder.verify(helper)


def test_a_link(helper: Path) -> None:
    os.rename(helper / "kernel", helper / "real")
    (helper / "kernel").symlink_to("real")
    with pytest.raises(builder.HelperDamagedError):
        builder.verify(helper)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "kernel": 7}'])
def test_a_damaged_manifest(helper: Path, text: str) -> None:
    (helper / "manifest.json").write_text(text)
    with pytest.raises(builder.HelperDamagedError):
        builder.verify(helper)

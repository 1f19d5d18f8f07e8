# SPDX-License-Identifier: BSD-2-Clause
"""What tests with disks and the helper VM share: folders that hold them, and a helper."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.snf_image.os_definition import TREE


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not under /tmp, which may be memory, and too small for disks."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """The same, for what all tests of a file use."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def helper_vm() -> None:
    """The helper that the scripts use: the installed one, or one built now."""
    verified = subprocess.run([TREE / "snf-image", "helper", "verify"], capture_output=True)
    if verified.returncode:
        subprocess.run([TREE / "snf-image", "helper", "build"], check=True)

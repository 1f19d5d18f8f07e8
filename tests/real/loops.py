# SPDX-License-Identifier: BSD-2-Clause
"""A loop device for a test."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def loop_device(disk: Path) -> Iterator[Path]:
    # Not --find: the kernel names a device that the node may not have.
    for path in sorted(Path("/dev").glob("loop[0-9]*")):
        if subprocess.run(["losetup", path, disk], capture_output=True).returncode == 0:
            break
    else:
        pytest.fail("no loop device is free")
    try:
        yield path
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)

# SPDX-License-Identifier: BSD-2-Clause
"""The guest images: they boot, a second build needs nothing, a killed build leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.place import ROOT, done, host

pytestmark = pytest.mark.timeout(1800)

BUILD = ROOT / "tests/guest/build-image"


@pytest.mark.parametrize(("name", "seconds"), [("small", 120), ("debian-12", 300)])
def test_an_image_boots_under_emulation(node1: str, name: str, seconds: int) -> None:
    """They need 3 and 14 seconds on two quiet cores; the limits are for machines that are busy or slow."""
    built = host(BUILD, timeout=1500)
    assert built.status == 0, built.said
    done("/src/tests/guest/boot-image", f"/srv/cache/guest/{name}.raw", "--deadline", str(seconds))


def test_a_second_build_needs_no_network(node1: str) -> None:
    again = host("unshare", "--net", BUILD, "--small")
    assert again.status == 0, again.said
    assert again.stdout.strip() == "/var/cache/snf-ganeti/guest/small.raw"


def test_a_killed_build_leaves_nothing(tmp_path: Path) -> None:
    build = subprocess.Popen(
        [str(BUILD), "--cache", str(tmp_path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(3)
    build.send_signal(signal.SIGKILL)
    build.wait(timeout=10)
    time.sleep(1)
    assert not _processes_about(str(tmp_path))
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    left = [path for path in (tmp_path / "guest").rglob("*") if path.is_file() and path.name != "lock"]
    assert left == []


def _processes_about(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if text.encode() in words and b"pytest" not in words:
            found.append(words.decode())
    return found


def test_without_root() -> None:
    outcome = host("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", BUILD)
    assert outcome.status == 2
    assert outcome.stderr.count("\n") == 1
    assert "must run as root" in outcome.stderr

# SPDX-License-Identifier: BSD-2-Clause
"""Install, upgrade, remove and purge leave no trace that they should not, in a plain Debian."""

from __future__ import annotations

import pytest

from ganeti_plugin.run import run
from tests.testbed.layout import CACHE, TREE
from tests.testbed.roots import Roots, download, need_base

PACKAGING = TREE / "tests/packaging"


@pytest.mark.timeout(1500)
def test_the_life_of_the_packages() -> None:
    """The script names each property that it checks; a failed one starts with FAIL."""
    build_root = CACHE / "build-root"
    run([PACKAGING / "build-packages", build_root], timeout=300)
    run([PACKAGING / "build-packages", "--suffix", "next", build_root], timeout=300)
    roots = Roots(release="bookworm")
    need_base(roots)
    download(roots, ("snf-ganeti",))
    done = run([PACKAGING / "check-packages", roots.base, roots.archives], timeout=900, allowed=(0, 1))
    said = done.stdout.decode()
    lines = said.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == [], said
    assert done.returncode == 0, said
    assert len([line for line in lines if line.startswith("ok ")]) > 40

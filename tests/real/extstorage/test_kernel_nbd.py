# SPDX-License-Identifier: BSD-2-Clause
"""Block devices of the kernel's NBD client, in a machine with the distribution's kernel: most hosts of tests have none.

One machine runs kernel_script.py; each of its checks is a test here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.real.extstorage import kernel_machine

pytestmark = pytest.mark.timeout(600)

SCRIPT = Path(__file__).with_name("kernel_script.py").read_text(encoding="utf-8")
#: What it imports, where it finds it beside itself.
FILES = {"/root/tests/real/extstorage/fio.py": Path(__file__).with_name("fio.py").read_bytes()}
CHECKS = re.findall(r"^def (check_[a-z_]+)\(", SCRIPT, re.MULTILINE)


@pytest.fixture(scope="module")
def lines(request: pytest.FixtureRequest) -> list[str]:
    """What the machine's console said; its results are shown while it runs."""
    said = []
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for line in kernel_machine.run(SCRIPT, files=FILES):
            said.append(line)
            if line.startswith(("ok ", "failed ", "kernel ", "done ")):
                print(f"    machine: {line[:150]}", flush=True)
    return said


@pytest.fixture(scope="module")
def results(lines: list[str]) -> Mapping[str, str]:
    return {line.split()[1]: line for line in lines if line.startswith(("ok check_", "failed check_"))}


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_machine(check: str, results: Mapping[str, str], lines: list[str]) -> None:
    assert check in results, "\n".join(lines[-50:])
    if not results[check].startswith("ok "):
        pytest.fail(results[check].replace("\\n", "\n") + "\n" + "\n".join(lines[-120:]))

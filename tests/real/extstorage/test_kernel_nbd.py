# SPDX-License-Identifier: BSD-2-Clause
"""Block devices of the kernel's NBD client, in a machine with the distribution's kernel: most hosts of tests have none.

One machine runs kernel_script.py; each of its checks is a test here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from extstorage.rados_store import create_store
from extstorage.specs import RadosSpec
from tests.real.extstorage import kernel_machine
from tests.real.extstorage.ceph import POOL, USER, Ceph

pytestmark = pytest.mark.timeout(600)

SCRIPT = Path(__file__).with_name("kernel_script.py").read_text(encoding="utf-8")
#: What it imports, where it finds it beside itself.
FILES = {"/root/tests/real/extstorage/fio.py": Path(__file__).with_name("fio.py").read_bytes()}
#: A store in the node's Ceph, as the machine sees it.
CEPH = "/etc/ceph/test"
STORES = """[archipelago]
stores = {{ main = "files:/var/lib/snf-archipelago/store", ceph = "{spec}" }}
"""
CHECKS = re.findall(r"^def (check_[a-z_]+)\(", SCRIPT, re.MULTILINE)


def in_ceph(ceph: Ceph, place: RadosSpec) -> dict[str, bytes]:
    """A store, and the files by which the machine finds it: at the cluster's own addresses, which it makes lead there.

    (What is given to it is all that it sees of the node's /run.)
    """
    create_store(place).close()
    spec = f"rados:{POOL}/{place.namespace}?conf={CEPH}.conf&user={USER}&keyring={CEPH}.keyring&lease=3"
    monitor, _ = ports = ceph.ports()
    return {
        "/root/ports": " ".join(map(str, ports)).encode(),
        f"{CEPH}.conf": f"[global]\nmon_host = [v2:127.0.0.1:{monitor}]\n".encode(),
        f"{CEPH}.keyring": ceph.user_keyring.read_bytes(),
        "/etc/snf-ganeti/conf.d/ceph.toml": STORES.format(spec=spec).encode(),
    }


@pytest.fixture(scope="module")
def lines(request: pytest.FixtureRequest, ceph: Ceph, new_spec: Callable[..., RadosSpec]) -> list[str]:
    """What the machine's console said; its results are shown while it runs."""
    said = []
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for line in kernel_machine.run(SCRIPT, files={**FILES, **in_ceph(ceph, new_spec())}):
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

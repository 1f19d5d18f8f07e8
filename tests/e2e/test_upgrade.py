# SPDX-License-Identifier: BSD-2-Clause
"""An upgrade of the packages, and a try to remove them, under a running guest (threat L11)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.place import ROOT, Traces, done, host, tried
from tests.testbed.layout import CACHE

pytestmark = pytest.mark.timeout(600)

NAME = "upgrade1.test"


@pytest.fixture(name="guest")
def _guest(node1: str) -> Iterator[str]:
    """A running instance with an empty disk."""
    done(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext", "--disk", "0:size=1G,provider=archipelago"),
        *("-o", "snf-image+default", "-O", "img_id=null,img_format=diskdump", "--no-install"),
        *("--net", "0:ip=pool,network=public", "-B", "minmem=128M,maxmem=128M,vcpus=1"),
        *("--no-name-check", "--no-ip-check", NAME),
    )
    done("gnt-instance", "startup", NAME)
    yield NAME
    tried("gnt-instance", "remove", "-f", "--shutdown-timeout=0", NAME)


def running() -> str:
    """The processes that the guest lives on: QEMU and the server of its volume."""
    found = done("pgrep", "-f", "qemu-system|nbdkit")
    assert len(found.split()) >= 2
    return found


def firewall() -> str:
    """Who the guest is, as the kernel holds it."""
    known = [
        done("nft", "list", kind, family, "snf_network", name)
        for kind, family, name in (("map", "inet", "owner"), ("map", "inet", "profiles"), ("set", "netdev", "addr4"))
    ]
    assert all("elements = " in listing for listing in known), known
    return "\n".join(known)


def test_an_upgrade_disturbs_no_guest(guest: str) -> None:
    built = host(ROOT / "tests/packaging/build-packages", "--suffix", "next", CACHE / "build-root")
    assert built.status == 0, built.said
    before = running(), firewall(), Traces.look()
    done("bash", "-c", "dpkg -i /src/build/deb-next/*.deb")
    assert done("dpkg-query", "-W", "-f", "${Version}", "snf-archipelago").endswith("+next")
    assert (running(), firewall(), Traces.look()) == before
    assert done("systemctl", "is-active", "snf-network") == "active"
    done("snf-image", "helper", "verify")
    done("gnt-instance", "reboot", "--type=hard", guest)


@pytest.mark.parametrize(("package", "reason"), [("snf-archipelago", "attached"), ("snf-network", "guests have NICs")])
def test_a_part_that_a_guest_needs_is_not_removed(guest: str, package: str, reason: str) -> None:
    before = running(), firewall()
    refused = tried("apt-get", "-y", "remove", package)
    assert refused.status != 0
    assert reason in refused.said
    assert (running(), firewall()) == before
    # dpkg leaves a refused package half-way ("deinstall ok installed"); what apt removed before it comes back.
    done("bash", "-c", "dpkg -i /src/build/deb-next/*.deb")

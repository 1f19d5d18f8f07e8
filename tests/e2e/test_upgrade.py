# SPDX-License-Identifier: BSD-2-Clause
"""An upgrade of the packages, and a try to remove them, under a running guest (threat L11)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.guest import Guest, Load, parameters
from tests.e2e.place import IMAGE, Traces
from tests.place import ROOT, done, host, tried
from tests.testbed.layout import CACHE

pytestmark = pytest.mark.timeout(600)

NAME = "upgrade1.test"


@pytest.fixture(name="guest", scope="module")
def _guest(node1: str) -> Iterator[Guest]:
    """A running instance that can write to an empty disk."""
    done(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext"),
        *("--disk", f"0:size=128M,provider=archipelago,origin={IMAGE}", "--disk", "1:size=1G,provider=archipelago"),
        *("-o", "snf-image+default", "-O", parameters(), "--net", "0:ip=pool,network=public"),
        *("-B", "minmem=128M,maxmem=128M,vcpus=1", "--no-name-check", "--no-ip-check"),
        *("--tags", "synnefo:network:0:unprotected", NAME),
    )
    yield Guest(NAME)
    tried("gnt-instance", "remove", "-f", "--shutdown-timeout=0", NAME)


def running(what: str = "qemu-system|nbdkit") -> str:
    """The processes that the guest lives on: QEMU and the server of its volume."""
    found = done("pgrep", "-f", what)
    assert len(found.split()) >= what.count("|") + 1
    return found


def servers() -> dict[str, dict[str, object]]:
    """By volume, what its server says of itself."""
    found = json.loads(done("archipelago", "server", "list", "--json"))
    assert len(found) == 2
    return {server["name"]: server for server in found}


def firewall() -> str:
    """Who the guest is, as the kernel holds it."""
    known = [
        done("nft", "list", kind, family, "snf_network", name)
        for kind, family, name in (("map", "inet", "owner"), ("map", "inet", "profiles"), ("set", "netdev", "addr4"))
    ]
    assert all("elements = " in listing for listing in known), known
    return "\n".join(known)


def test_an_upgrade_disturbs_no_guest(guest: Guest) -> None:
    built = host(ROOT / "tests/packaging/build-packages", "--suffix", "next", CACHE / "build-root")
    assert built.status == 0, built.said
    load = Load(guest)
    load.start()
    before, served = (running("qemu-system"), firewall(), Traces.look()), servers()
    done("bash", "-c", "dpkg -i /src/build/deb-next/*.deb")
    assert done("dpkg-query", "-W", "-f", "${Version}", "snf-archipelago").endswith("+next")
    assert (running("qemu-system"), firewall(), Traces.look()) == before
    # The servers run the new code: other processes, younger than its files, and as much writers as the old ones.
    now = servers()
    newest = "/usr/share/snf-ganeti/extstorage/nbdkit_plugin.py"
    for volume, server in now.items():
        assert server["pid"] != served[volume]["pid"]
        assert (server["mode"], server["writer"]) == (served[volume]["mode"], served[volume]["writer"])
        done("bash", "-c", f"[ $(stat -c %Y /proc/{server['pid']}) -ge $(stat -c %Z {newest}) ]")
    load.progress()
    load.stop()
    load.check()
    assert done("systemctl", "is-active", "snf-network") == "active"
    done("snf-image", "helper", "verify")
    done("gnt-instance", "reboot", "--type=hard", NAME)


@pytest.mark.parametrize(("package", "reason"), [("snf-archipelago", "attached"), ("snf-network", "guests have NICs")])
@pytest.mark.usefixtures("guest")
def test_a_part_that_a_guest_needs_is_not_removed(package: str, reason: str) -> None:
    before = running(), firewall()
    refused = tried("apt-get", "-y", "remove", package)
    assert refused.status != 0
    assert reason in refused.said
    assert (running(), firewall()) == before
    # dpkg leaves a refused package half-way ("deinstall ok installed"); what apt removed before it comes back.
    done("bash", "-c", "dpkg -i /src/build/deb-next/*.deb")

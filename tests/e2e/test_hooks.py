# SPDX-License-Identifier: BSD-2-Clause
"""No state of a NIC outlives its guest: Ganeti's own hooks see to it, and its watcher where no hook is run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.place import done, eventually, tried

pytestmark = pytest.mark.timeout(300)

NAME = "hooks1.test"
WATCHER = "/etc/ganeti/hooks/watcher/50-snf-ganeti"


@pytest.fixture(name="address")
def _address(node1: str) -> Iterator[str]:
    """The address of a running instance with an empty disk: the firmware waits for ever."""
    done(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext", "--disk", "0:size=1G,provider=archipelago"),
        *("-o", "snf-image+default", "-O", "img_id=null,img_format=diskdump", "--no-install"),
        *("--net", "0:ip=pool,network=public", "-B", "minmem=128M,maxmem=128M,vcpus=1"),
        *("--no-name-check", "--no-ip-check", NAME),
    )
    done("gnt-instance", "startup", NAME)
    address = done("gnt-instance", "list", "--no-headers", "-o", "nic.ips", NAME).strip("[]'")
    assert address in known()
    yield address
    tried("gnt-instance", "remove", "-f", "--shutdown-timeout=0", NAME)


def known() -> str:
    """All that firewall, routes and proxies of the node know about guests."""
    firewall = done("snf-network", "status")
    routes = done("ip", "route", "show", "table", "100") + done("ip", "-6", "route", "show", "table", "100")
    return "\n".join((firewall, routes, done("ip", "-6", "neighbour", "show", "proxy")))


def test_a_stop_is_cleaned_up_after(address: str) -> None:
    done("gnt-instance", "shutdown", "--timeout=0", NAME)
    assert address not in known()
    done("gnt-instance", "startup", NAME)
    assert address in known()


def test_a_removal_is_cleaned_up_after(address: str) -> None:
    done("gnt-instance", "remove", "-f", "--shutdown-timeout=0", NAME)
    assert address not in known()
    assert "tap" not in known()


def test_the_watcher_cleans_up_after_a_guest_that_ended_by_itself(address: str) -> None:
    done("bash", "-c", f"kill -9 $(cat /var/run/ganeti/kvm-hypervisor/pid/{NAME})")
    eventually("end of QEMU", lambda: "tap" not in done("ls", "/sys/class/net"), seconds=10)
    assert "tap" in done("snf-network", "status")
    done(WATCHER)
    assert address not in known()
    assert "tap" not in known()

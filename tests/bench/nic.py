# SPDX-License-Identifier: BSD-2-Clause
"""A NIC going up: the script that QEMU's start waits for, beside Ganeti's own, which filters nothing."""

from __future__ import annotations

from tests.bench.figures import Figure
from tests.bench.place import Job, timed
from tests.place import done

TAP = "tap990"
OURS = "/usr/share/snf-ganeti/ganeti-ifup"

#: What Ganeti's own kvm-ifup does for a routed NIC (lib/net-common.in, setup_route), without our script.
THEIRS = (
    "ip link set {tap} up; ip route add table 100 198.51.100.77 dev {tap}; "
    "echo 1 >/proc/sys/net/ipv4/conf/{tap}/proxy_arp; echo 1 >/proc/sys/net/ipv4/conf/{tap}/forwarding; "
    "echo 1 >/proc/sys/net/ipv6/conf/{tap}/proxy_ndp; echo 1 >/proc/sys/net/ipv6/conf/{tap}/forwarding"
)

ENVIRONMENT = {
    "INTERFACE": TAP,
    "INTERFACE_INDEX": "0",
    "INTERFACE_NAME": "nic0",
    "INTERFACE_UUID": "00000000-0000-4000-8000-00000000cafe",
    "INSTANCE": "bench-nic.test",
    "MAC": "aa:00:00:be:9c:01",
    "MODE": "routed",
    "LINK": "100",
    "IP": "198.51.100.77",
    "NETWORK_NAME": "public",
    "NETWORK_UUID": "00000000-0000-4000-8000-00000000d00d",
    "NETWORK_SUBNET": "198.51.100.0/24",
    "NETWORK_GATEWAY": "198.51.100.1",
    "NETWORK_SUBNET6": "2001:db8:1::/64",
    "NETWORK_GATEWAY6": "2001:db8:1::1",
    "TAGS": "synnefo:network:0:protected",
    "NETWORK_TAGS": "",
}


def measure(rounds: int) -> list[Figure]:
    runs = max(10, rounds)
    make = f"ip link del {TAP} 2>/dev/null || true; ip tuntap add {TAP} mode tap"
    forget = f"ip link del {TAP} 2>/dev/null || true"
    jobs = [
        Job(name="NIC up", command=[OURS, TAP], environment=ENVIRONMENT, prepare=make, cleanup=forget),
        Job(name="Ganeti's", command=["/bin/bash", "-ec", THEIRS.format(tap=TAP)], prepare=make, cleanup=forget),
    ]
    try:
        ours, theirs = timed(jobs, rounds=runs)
    finally:
        done("sh", "-c", forget)
    peer = "Ganeti's own kvm-ifup steps, no filter"
    return [Figure(name="NIC up", value=ours, peer=peer, peer_value=theirs, limit=0.15, runs=runs)]

#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Witness on the wire: count the packets that leave the nodes with given source addresses.

    watch.py INTERFACE SECONDS ADDRESS...

Says "watching", and at the end of its input, or after SECONDS, "ADDRESS COUNT" lines. Runs in the outside
namespace, knows nothing of the suite.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import sys
import time

ETH_P_ALL = 3
IPV4, IPV6 = 0x0800, 0x86DD


def source_of(frame: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    kind = int.from_bytes(frame[12:14], "big")
    if kind == IPV4 and len(frame) >= 34:
        return ipaddress.IPv4Address(frame[26:30])
    if kind == IPV6 and len(frame) >= 54:
        return ipaddress.IPv6Address(frame[22:38])
    return None


def main() -> None:
    interface, seconds, *addresses = sys.argv[1:]
    counts = {ipaddress.ip_address(address): 0 for address in addresses}
    deadline = time.monotonic() + float(seconds)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as wire:
        wire.bind((interface, 0))
        print("watching", flush=True)
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([wire, sys.stdin], [], [], left)
            if wire in ready:
                source = source_of(wire.recv(65535))
            elif sys.stdin in ready:
                break
            else:
                continue
            if source in counts:
                counts[source] += 1
    for address, count in counts.items():
        print(address, count)


main()

# SPDX-License-Identifier: BSD-2-Clause
"""`gnt-instance add` of a clone with customization: seconds until Ganeti says that it starts the instance."""

from __future__ import annotations

import os
import subprocess
import time

from ganeti_plugin.errors import StateError
from ganeti_plugin.run import run, spawn
from tests.bench.figures import Figure
from tests.bench.place import has_image, median
from tests.place import ROOT, TESTBED, done

NAME = "bench1.test"
IMAGE = "bench-debian"
DEADLINE = 300.0

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Ub0VYFNZ0d3Y1iC8h3jVZV1qTq1m3y1Yt4E4Zk9aB bench"

COMMAND = (
    *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext"),
    *("--disk", f"0:size=2G,provider=archipelago,origin={IMAGE}"),
    *("-o", "snf-image+default", "-O", f"img_id=null,img_format=diskdump,auth_keys={KEY}"),
    *("--os-parameters-private", "img_passwd=bench"),
    *("--net", "0:ip=pool,network=public", "--tags", "synnefo:network:0:limited"),
    *("-B", "minmem=384M,maxmem=384M,vcpus=1", "--no-name-check", "--no-ip-check", NAME),
)


def prepare() -> None:
    """The Debian image and the network, unless they are there."""
    run([ROOT / "tests/guest/build-image"], timeout=1500)
    if not has_image(IMAGE):
        done("archipelago", "image", "import", IMAGE, "/srv/cache/guest/debian-12.raw", "--format", "raw")
    if "public" not in done("gnt-network", "list", "--no-headers", "-o", "name").split():
        addresses = ("--network=198.51.100.0/24", "--gateway=198.51.100.1")
        addresses6 = ("--network6=2001:db8:1::/64", "--gateway6=2001:db8:1::1")
        done("gnt-network", "add", *addresses, *addresses6, "public")
        done("gnt-network", "connect", "--nic-parameters", "mode=routed,link=100", "public")


def once() -> float:
    """Add the instance, remove it again; seconds until the line that says it is started."""
    reader, writer = os.pipe()
    started = time.monotonic()
    process = spawn([TESTBED, "exec", "node1", *COMMAND], stdout=writer, stderr=subprocess.STDOUT, env=os.environ)
    os.close(writer)
    seconds = None
    said = []
    try:
        with os.fdopen(reader, "r", errors="replace") as lines:
            for line in lines:
                said.append(line)
                if "starting instance" in line and seconds is None:
                    seconds = time.monotonic() - started
        process.wait(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            process.kill()
        done(
            "sh", "-c", f"gnt-instance remove -f --ignore-failures --shutdown-timeout=1 {NAME} >/dev/null 2>&1 || true"
        )
    if seconds is None or process.returncode:
        raise StateError(message=f"gnt-instance add failed: {''.join(said)[-1500:]}")
    return seconds


def measure(rounds: int) -> list[Figure]:
    prepare()
    seconds = median([once() for _ in range(rounds)])
    return [Figure(name="gnt-instance add, to 'starting instance'", value=seconds, limit=15, runs=rounds)]

# SPDX-License-Identifier: BSD-2-Clause
"""Calls the OS definition's scripts as Ganeti does, and looks at what they leave on the node."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

INSTALLED = Path("/usr/share/ganeti/os/snf-image")
TREE = Path(__file__).parents[3]
SCRIPTS = INSTALLED if INSTALLED.is_dir() else TREE / "os_providers" / "snf-image"
IMAGES = Path("/var/lib/snf-image")
STATE = Path("/run/snf-image")
INSTANCE = "web1.example.org"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq test"

#: What may stay after a run: the places of the queue, the verdict on KVM, the empty root of the sandboxes.
STAYS = ("place-", "kvm-verdict", "root")


def environment(disk: Path | None = None, uri: str | None = None, **variables: str) -> dict[str, str]:
    """Ganeti's environment for an instance with one disk; names in `variables` as Ganeti spells them."""
    found = {
        "PATH": "/sbin:/bin:/usr/sbin:/usr/bin",
        "OS_API_VERSION": "20",
        "OS_NAME": "snf-image",
        "OS_VARIANT": "default",
        "DEBUG_LEVEL": "0",
        "INSTANCE_NAME": INSTANCE,
        "HYPERVISOR": "kvm",
        "DISK_COUNT": "1",
        "DISK_0_ACCESS": "rw",
        "NIC_COUNT": "1",
        "NIC_0_MAC": "aa:00:00:12:34:56",
        "NIC_0_IP": "198.51.100.10",
        "NIC_0_MODE": "routed",
        "NIC_0_NETWORK_SUBNET": "198.51.100.0/24",
        "NIC_0_NETWORK_GATEWAY": "198.51.100.1",
        "OSP_IMG_ID": "null",
        "OSP_IMG_FORMAT": "diskdump",
        "OSP_AUTH_KEYS": KEY,
    }
    if disk is not None:
        found["DISK_0_PATH"] = str(disk)
    if uri is not None:
        found["DISK_0_URI"] = uri
    return {name: value for name, value in {**found, **variables}.items() if value != "-"}


def start(action: str, given: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPTS / action], env=given, cwd=SCRIPTS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def script(action: str, given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / action],
        env=given,
        cwd=SCRIPTS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )


def create(disk: Path | None = None, uri: str | None = None, **variables: str) -> str:
    """A create that must succeed; answers with its log."""
    done = script("create", environment(disk, uri, **variables))
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(disk: Path | None = None, uri: str | None = None, **variables: str) -> str:
    """A create that must fail; answers with the last line of its log, which is the reason in one sentence."""
    done = script("create", environment(disk, uri, **variables))
    assert done.returncode in (1, 2), done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: snf-image: "), done.stderr
    assert "internal error" not in last
    return last


def processes() -> list[str]:
    """Command lines of all processes that a run could have left: QEMU, the launcher, nbdcopy."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if any(word in line for word in ("snf-image-helper", "snf-image-qcow2", "launcher.py", "nbdcopy")):
            found.append(line)
    return found


def units() -> str:
    if not Path("/run/systemd/system").is_dir():
        return ""
    command = ["systemctl", "list-units", "--all", "--no-legend", "snf-image-*.service"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def leftovers() -> list[str]:
    """Everything that must not be there once no run is under way; waits a moment for it to go."""
    deadline = time.monotonic() + 10
    while True:
        files = [path.name for path in STATE.glob("*") if not path.name.startswith(STAYS)] if STATE.is_dir() else []
        found = [*processes(), *units().splitlines(), *files]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)

# SPDX-License-Identifier: BSD-2-Clause
"""Boot a guest image in plain QEMU (TCG) and say how long it took: the proof that an image boots, and its stopwatch.

Needs QEMU, so it runs in a node's root; see `boot-image --help`.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.errors import StateError
from ganeti_plugin.run import spawn

QEMU = "qemu-system-x86_64"


def qemu_command(image: Path, console: Path, memory: int) -> list[str | Path]:
    """One virtio disk (writes are thrown away), one virtio NIC with nothing behind it, the console into a file."""
    return [
        QEMU, "-accel", "tcg", "-m", str(memory), "-display", "none", "-nodefaults", "-no-reboot",
        "-serial", f"file:{console}",
        "-drive", f"file={image},format=raw,if=virtio,snapshot=on,cache=unsafe",
        "-nic", "user,model=virtio,restrict=on",
    ]  # fmt: skip


def seconds_until(image: Path, markers: tuple[bytes, ...], *, deadline: float, memory: int = 512) -> float:
    """Boot `image` until one of `markers` stands on its console; StateError with the console's end otherwise."""
    with tempfile.TemporaryDirectory(prefix="snf-boot-") as folder:
        console = Path(folder) / "console"
        started = time.monotonic()
        text = b""
        process = spawn(qemu_command(image, console, memory))
        try:
            while time.monotonic() - started < deadline:
                text = console.read_bytes() if console.exists() else b""
                if any(marker in text for marker in markers):
                    return time.monotonic() - started
                if process.poll() is not None:
                    break
                time.sleep(0.05)
            end = text[-2000:].decode("utf-8", "replace")
            raise StateError(message=f"{image.name} did not come up within {deadline:g} s; its console ends: {end}")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)


def main() -> int:
    """Entry point of boot-image."""
    parser = argparse.ArgumentParser(prog="boot-image", description="boot an image under TCG and time it")
    parser.add_argument("image", type=Path)
    parser.add_argument("--marker", action="append", help="text on the console that ends the wait (login:, ready:)")
    parser.add_argument("--deadline", type=float, default=180.0, help="seconds; default: %(default)s")
    parser.add_argument("--memory", type=int, default=512, help="MiB; default: %(default)s")
    options = parser.parse_args()
    markers = tuple(os.fsencode(marker) for marker in options.marker or ("login:", "ready:"))
    seconds = seconds_until(options.image, markers, deadline=options.deadline, memory=options.memory)
    log.info("%s: up after %.1f s", options.image, seconds)
    return 0

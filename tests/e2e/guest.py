# SPDX-License-Identifier: BSD-2-Clause
"""A guest that takes orders and writes numbered blocks; see blocks.py."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
from pathlib import Path

from tests.e2e.blocks import SHELL_PORT, WRITER, WRITER_PORT, numbers
from tests.e2e.place import ROOT, TESTBED, done, eventually, tried

BLOCKS = "/src/tests/e2e/blocks.py"
MIB = 1 << 20

INITTAB = f"""::sysinit:/etc/init.d/rcS
::respawn:/bin/busybox nc -ll -p {SHELL_PORT} -e /bin/sh
::respawn:/bin/busybox nc -ll -p {WRITER_PORT} -e /etc/writer
ttyS0::respawn:/sbin/getty -L ttyS0 115200 vt100
::shutdown:/bin/umount -a -r
"""

ASK = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {SHELL_PORT}), 5) as line:
    line.settimeout(60)
    line.sendall((sys.argv[2] + "\\nexit\\n").encode())
    while data := line.recv(65536):
        sys.stdout.buffer.write(data)
"""


def _personality() -> str:
    """The files that make the small image obey, as snf-image takes them; commas are escaped for Ganeti."""
    files = [("/etc/inittab", INITTAB, 0o644), ("/etc/writer", WRITER, 0o755)]
    entries = [
        {"path": path, "contents": base64.b64encode(text.encode()).decode(), "mode": mode} for path, text, mode in files
    ]
    return json.dumps(entries).replace(",", "\\,")


def parameters() -> str:
    return f"img_id=null,img_format=diskdump,img_personality={_personality()}"


class Guest:
    """A running instance, found again wherever it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = done("gnt-instance", "list", "--no-headers", "-o", "nic.ips", name).strip("[]'")

    @property
    def node(self) -> str:
        """The short name of its primary node."""
        return done("gnt-instance", "list", "--no-headers", "-o", "pnode", self.name).partition(".")[0]

    @property
    def status(self) -> str:
        return done("gnt-instance", "list", "--no-headers", "-o", "status", self.name)

    def volume(self, index: int = 0) -> str:
        found: list[str] = re.findall(r"[0-9a-f-]{36}\.ext\.disk\d+", done("gnt-instance", "info", self.name))
        return list(dict.fromkeys(found))[index]

    def ask(self, command: str) -> str:
        """Run a command in the guest; its output, stripped. It is tried once the guest takes connections."""
        said: list[str] = []

        def answered() -> bool:
            outcome = tried("/usr/bin/python3", "-c", ASK, self.address, command, place="outside", timeout=90)
            said.append(outcome.stdout)
            return outcome.status == 0

        eventually(f"answer of {self.name}", answered, seconds=120)
        return said[-1].strip()


class Writer:
    """A writer in a guest, and its numbers as they were said outside."""

    def __init__(self, guest: Guest, disk: str, *, first: int, size: int, slots: int) -> None:
        self._guest, self._disk, self._first, self._size, self._slots = guest, disk, first, size, slots
        self._said = Path(tempfile.mkdtemp(prefix="numbers-")) / "said"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def text(self) -> str:
        return self._said.read_text()

    @property
    def last(self) -> int:
        return max(numbers(self.text), default=0)

    def start(self) -> None:
        order = f"{self._disk} {self._first} {self._size} {self._slots} {self.last + 1 if self._said.exists() else 0}"
        with self._said.open("ab") as output:
            words = ("/usr/bin/python3", ROOT / "tests/e2e/blocks.py", "collect", self._guest.address, order)
            self._process = subprocess.Popen(
                [TESTBED, "exec", "outside", *words], stdin=subprocess.DEVNULL, stdout=output
            )
        self.progress()

    def progress(self, count: int = 10) -> None:
        """Wait until so many more blocks are durable."""
        goal = self.last + count

        def reached() -> bool:
            assert "failed" not in self.text, self.text[-200:]
            return self.last >= goal

        eventually(f"{count} more blocks of {self._guest.name}", reached, seconds=120)

    def stop(self) -> None:
        """Let it end by itself."""
        assert self._process is not None
        self._guest.ask("touch /run/stop-writing")
        self._process.wait(120)
        assert self.text.endswith("stopped\n"), self.text[-200:]

    def abandon(self) -> None:
        """The guest is no more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def check(self, volume: str, node: str) -> None:
        """Compare the volume, as this node serves it, with all that was said."""
        socket = f"/run/snf-archipelago/{volume}/nbd.sock"
        command = ["/usr/bin/python3", BLOCKS, "check", socket, *map(str, (self._first, self._size, self._slots))]
        outcome = tried(*command, place=node, stdin=self.text)
        assert outcome.status == 0, outcome.said
        assert outcome.stdout.startswith("checked "), outcome.stdout

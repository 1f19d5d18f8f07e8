# SPDX-License-Identifier: BSD-2-Clause
"""A guest that takes orders and writes numbered blocks; see blocks.py."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
from pathlib import Path

from tests.e2e.blocks import SHELL_PORT, STOP, WRITER, WRITER_PORT, numbers
from tests.place import ROOT, TESTBED, done, eventually, tried

BLOCKS = "/src/tests/e2e/blocks.py"
MIB = 1 << 20

#: The disk that is written to, and the file that ends the writing.
DATA = "/dev/vdb"

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

    def __init__(self, guest: Guest, *, first: int, size: int, slots: int) -> None:
        self._guest, self._first, self._size, self._slots = guest, first, size, slots
        self._said = Path(tempfile.mkdtemp(prefix="numbers-")) / "said"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def text(self) -> str:
        return self._said.read_text() if self._said.exists() else ""

    @property
    def last(self) -> int:
        return max(numbers(self.text), default=0)

    def start(self) -> None:
        order = f"{DATA} {self._first} {self._size} {self._slots} {self.last}"
        words = ("/usr/bin/python3", ROOT / "tests/e2e/blocks.py", "collect", self._guest.address, order)
        # What a guest was saying when it died has no end.
        self._said.write_text(self.text.rpartition("\n")[0] + "\n")
        with self._said.open("ab") as output:
            self._process = subprocess.Popen(
                [TESTBED, "exec", "outside", *words], stdin=subprocess.DEVNULL, stdout=output
            )

    def wait_for(self, number: int) -> None:
        """Until the block of this number is durable."""

        def reached() -> bool:
            assert "failed" not in self.text, self.text[-200:]
            return self.last >= number

        eventually(f"block {number} of {self._guest.name}", reached, seconds=120)

    def wait(self) -> None:
        """Until it ended, as it was told."""
        assert self._process is not None
        self._process.wait(120)
        assert self.text.endswith("stopped\n"), self.text[-200:]

    def abandon(self) -> None:
        """The guest is no more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def check(self, volume: str, node: str, *, said: str, doubt: int) -> None:
        """Compare a volume, as this node serves it, with what was said."""
        socket = f"/run/snf-archipelago/{volume}/nbd.sock"
        sizes = map(str, (self._first, self._size, self._slots, doubt))
        outcome = tried("/usr/bin/python3", BLOCKS, "check", socket, *sizes, place=node, stdin=said)
        assert outcome.status == 0, outcome.said
        assert outcome.stdout.startswith("checked "), outcome.stdout


class Load:
    """Small blocks and large ones, at once, on a guest's second disk."""

    #: How many blocks a guest may have written that nobody heard of: when it died, and while a snapshot was taken.
    DOUBT = 64
    SINCE = 400

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.writers = (
            Writer(guest, first=0, size=4096, slots=2048),
            Writer(guest, first=64 * MIB, size=256 << 10, slots=512),
        )

    def start(self) -> None:
        self.guest.ask(f"rm -f {STOP}")
        for writer in self.writers:
            writer.start()
        self.progress()

    def progress(self, blocks: int = 10) -> None:
        """Wait until so many more blocks are durable."""
        for writer, last in [(writer, writer.last) for writer in self.writers]:
            writer.wait_for(last + blocks)

    def stop(self) -> None:
        self.guest.ask(f"touch {STOP}")
        for writer in self.writers:
            writer.wait()

    def abandon(self) -> None:
        """Stop listening."""
        for writer in self.writers:
            writer.abandon()

    def said(self) -> list[str]:
        """All numbers up to now."""
        return [writer.text for writer in self.writers]

    def check(self, volume: str = "", node: str = "", *, said: list[str] | None = None, doubt: int = 0) -> None:
        """Compare a volume with what was said; if none is given, the guest's own."""
        volume, node = volume or self.guest.volume(1), node or self.guest.node
        for writer, text in zip(self.writers, said or self.said(), strict=True):
            writer.check(volume, node, said=text, doubt=doubt)

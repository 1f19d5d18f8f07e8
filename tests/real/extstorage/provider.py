# SPDX-License-Identifier: BSD-2-Clause
"""Calls the provider's scripts as Ganeti does, and looks at what they leave on the node."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

INSTALLED = Path("/usr/share/ganeti/extstorage/archipelago")
TREE = Path(__file__).parents[3]
SCRIPTS = INSTALLED if INSTALLED.is_dir() else TREE / "extstorage" / "archipelago"
COMMAND = "/usr/bin/archipelago" if INSTALLED.is_dir() else str(TREE / "archipelago")
RUN = Path("/run/snf-archipelago")
DEVICES = Path("/run/snf-archipelago-device")
STORE = Path("/var/lib/snf-archipelago/store")
CONFIGURATION = Path("/etc/snf-ganeti/conf.d/test-stores.toml")

#: The unit, socket and service, of the fork server.
ACTIONS = "snf-archipelago-actions"


def new_name() -> str:
    return f"{uuid.uuid4()}.ext.disk0"


def script(action: str, volume: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one script with Ganeti's environment; names in `variables` as Ganeti spells them."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "VOL_NAME": volume, "VOL_UUID": str(uuid.uuid4())}
    environment |= {"EXTP_PROVIDER": "archipelago", "EXTP_ACCESS": "userspace"} | variables
    nothing = subprocess.DEVNULL
    return subprocess.run(
        [SCRIPTS / action], env=environment, cwd=SCRIPTS, stdin=nothing, capture_output=True, text=True, timeout=120
    )


def do(action: str, volume: str, **variables: str) -> str:
    """The same, and it must succeed; answers with its output."""
    done = script(action, volume, **variables)
    assert done.returncode == 0, f"{action}: {done.stderr}"
    return done.stdout


def refused(action: str, volume: str, **variables: str) -> str:
    """The same, and it must fail with one sentence."""
    done = script(action, volume, **variables)
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "internal error" not in lines[0]
    return lines[0]


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=120)


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def without_fork_server() -> Iterator[None]:
    """Scripts do their actions in their own process."""
    systemctl("stop", f"{ACTIONS}.socket", f"{ACTIONS}.service")
    try:
        yield
    finally:
        systemctl("start", f"{ACTIONS}.socket")


def uri(volume: str) -> str:
    return f"nbd+unix:///?socket={RUN / volume / 'nbd.sock'}"


def qemu_io(volume: str, *commands: str, readonly: bool = False) -> str:
    """Run qemu-io commands on an attached volume; a pattern that differs is a failure."""
    arguments = [text for one in commands for text in ("-c", one)]
    mode = ["-r"] if readonly else []
    line = ["qemu-io", *mode, "-f", "raw", *arguments, uri(volume)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout.lower(), done.stdout
    return done.stdout


class Client:
    """A qemu-io in the midst of its work. It waits for a server that has died, as a guest's QEMU does."""

    def __init__(self, volume: str, first: str) -> None:
        """Returns when the first command was answered."""
        place = f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={RUN / volume / 'nbd.sock'}"
        self._process = subprocess.Popen(
            ["qemu-io", "--image-opts", f"{place},file.reconnect-delay=60"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.say(first)
        assert self._process.stdout
        answer = self._process.stdout.readline()
        assert " bytes at offset " in answer, answer

    def say(self, *commands: str) -> None:
        assert self._process.stdin
        self._process.stdin.write("".join(f"{one}\n" for one in commands))
        self._process.stdin.flush()

    def finish(self, *commands: str) -> None:
        """All commands succeed, these last ones, too."""
        output, _ = self._process.communicate("".join(f"{one}\n" for one in (*commands, "quit")), timeout=60)
        assert self._process.returncode == 0, output
        assert "failed" not in output.lower(), output


def server_pid(volume: str) -> int:
    """The process that serves a volume, found by its arguments."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if Path(os.fsdecode(arguments[0])).name == "nbdkit" and f"volume={volume}".encode() in arguments:
                return int(entry.name)
    return 0


def kill_server(volume: str) -> None:
    pid = server_pid(volume)
    assert pid
    os.kill(pid, signal.SIGKILL)
    # Until the last of its threads has ended, its sockets still take calls.
    eventually(lambda: server_pid(volume) != pid and not Path(f"/proc/{pid}").exists())


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def store_beside(name: str, folder: Path, **others: str) -> Iterator[Path]:
    """A files store in a folder of its own beside the default one; `others` are in the table only."""
    folder.mkdir()
    places = {"main": f"files:{STORE}", name: f"files:{folder}", **others}
    table = ", ".join(f'{store} = "{place}"' for store, place in places.items())
    try:
        shutil.chown(folder, "snf-archipelago", "snf-archipelago")
        CONFIGURATION.parent.mkdir(parents=True, exist_ok=True)
        CONFIGURATION.write_text(f"[archipelago]\nstores = {{ {table} }}\n")
        made = command("store", "create", name)
        assert made.returncode == 0, made.stderr
        yield folder
    finally:
        CONFIGURATION.unlink(missing_ok=True)
        shutil.rmtree(folder)


def traces(volume: str) -> list[str]:
    """What is left of a volume on the node and in the store."""
    places = [RUN / volume, DEVICES / volume, STORE / "maps" / volume]
    left = [str(place) for place in places if place.exists()]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if volume in line]
    return [*left, *mounts, *([f"process {server_pid(volume)}"] if server_pid(volume) else [])]

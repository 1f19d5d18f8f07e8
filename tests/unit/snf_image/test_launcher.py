# SPDX-License-Identifier: BSD-2-Clause
"""The launcher, run as it is in the sandbox (-I -S), with Python in QEMU's place."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parents[3] / "snf_image" / "launcher.py"
PYTHON = "/usr/bin/python3"


def launched(control: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PYTHON, "-I", "-S", LAUNCHER], stdin=control.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def order(control: socket.socket, command: Sequence[str], *fds: int) -> None:
    socket.send_fds(control, [json.dumps(command).encode()], list(fds))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_descriptors_arrive_and_the_status_comes_back(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    reading, writing = os.pipe()
    process = launched(theirs)
    order(ours, [PYTHON, "-c", "import os, sys; os.write(%fd0%, b'hello'); sys.exit(7)"], writing)
    os.close(writing)
    assert process.wait(20) == 7
    assert os.read(reading, 100) == b"hello"
    os.close(reading)
    process.communicate()


def test_a_killed_program_is_no_success(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    process = launched(theirs)
    order(ours, [PYTHON, "-c", "import os; os.kill(os.getpid(), 31)"])
    assert process.wait(20) == 128 + 31
    process.communicate()


def test_the_leash(pair: tuple[socket.socket, socket.socket]) -> None:
    """V07: when the host's end closes, the program is killed at once."""
    ours, theirs = pair
    reading, writing = os.pipe()
    process = launched(theirs)
    theirs.close()
    order(ours, [PYTHON, "-c", "import os, time; os.write(%fd0%, b'up'); time.sleep(60)"], writing)
    os.close(writing)
    assert os.read(reading, 2) == b"up"
    ours.close()
    assert process.wait(10) == 69
    assert os.read(reading, 1) == b"", "the program lives on"
    os.close(reading)
    process.communicate()


@pytest.mark.parametrize("data", [b"no json", b'["%fd3%"]', b"[1]"])
def test_malformed_orders(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    ours, theirs = pair
    process = launched(theirs)
    ours.send(data)
    assert process.wait(20) != 0
    process.communicate()


def test_a_program_that_is_missing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    process = launched(theirs)
    order(ours, ["/nonexistent/qemu"])
    assert process.wait(20) == 69
    assert b"/nonexistent/qemu: No such file" in process.communicate()[1]

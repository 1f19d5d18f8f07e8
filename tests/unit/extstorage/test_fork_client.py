# SPDX-License-Identifier: BSD-2-Clause
"""A script and a server that answers this or that: the action is done once, there or here. (The real: tests/real.)"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extstorage import fork_client

TREE = Path(__file__).parents[3]
#: A script whose server is elsewhere, and whose own action has no volume.
SCRIPT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from extstorage import fork_client; "
    "fork_client.SOCKET = sys.argv[2]; sys.argv = ['/provider/verify']; fork_client.run()"
)
HERE = "error: archipelago: verify: the environment variable VOL_NAME is missing"


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path, listener


def script(path: Path, **more: str) -> tuple[int, str]:
    command = [sys.executable, "-Es", "-c", SCRIPT, str(TREE), str(path)]
    done = subprocess.run(command, env=more, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stderr


def is_done_here(path: Path) -> bool:
    status, said = script(path)
    return status == 2 and said.startswith(HERE) and said.count("\n") == 1


def answering(listener: socket.socket, answer: Callable[[socket.socket], None]) -> threading.Thread:
    def work() -> None:
        client, _ = listener.accept()
        with client:
            answer(client)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_without_a_server_the_action_is_done_here(tmp_path: Path) -> None:
    assert is_done_here(tmp_path / "none")


def test_a_dead_server_is_done_without(place: tuple[Path, socket.socket]) -> None:
    path, listener = place
    listener.close()
    assert is_done_here(path)


@pytest.mark.parametrize("said", [[], [b"?"], [b"?", b"!"]], ids=["is old", "refuses", "dies after the fork"])
def test_without_an_exit_status_the_action_is_done_here(place: tuple[Path, socket.socket], said: list[bytes]) -> None:
    path, listener = place

    def answer(client: socket.socket) -> None:
        for message in said:
            client.send(message)
        if said:
            client.recv(1 << 20)

    thread = answering(listener, answer)
    assert is_done_here(path)
    thread.join()


def test_the_exit_status_is_that_of_the_fork(place: tuple[Path, socket.socket]) -> None:
    path, listener = place
    requests: list[list[bytes]] = []
    texts: list[bytes] = []

    def answer(client: socket.socket) -> None:
        client.send(b"?")
        request, files, _, _ = socket.recv_fds(client, 1 << 20, 8)
        requests.append(request.split(b"\0"))
        os.write(files[2], b"done\n")
        texts.append(os.fsencode(os.readlink(f"/proc/self/fd/{files[3]}")))
        client.send(b"!")
        client.send(bytes([7]))
        for number in files:
            os.close(number)

    thread = answering(listener, answer)
    assert script(path, VOL_NAME="web", EXTP_KEEP="\udcff", HOME="/nowhere", DEBUG_LEVEL="1") == (7, "done\n")
    thread.join()
    where = fork_client.where()
    request = requests[0]
    assert request[: len(where)] == where
    assert request[len(where)] == b"/provider/verify"
    assert set(request[len(where) + 2 :]) == {b"VOL_NAME=web", b"EXTP_KEEP=\xff", b"DEBUG_LEVEL=1"}
    assert texts == [os.fsencode(os.getcwd())]


def test_the_client_loads_next_to_nothing() -> None:
    """Each module costs a script up to several milliseconds; the interpreter alone takes eight."""
    code = "import os, sys; sys.path.insert(0, sys.argv[1]); old = set(sys.modules); from extstorage import fork_client"
    command = [sys.executable, "-IS", "-c", f"{code}; print(*sorted(set(sys.modules) - old))", str(TREE)]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    ours = {"extstorage", "extstorage.fork_client", "ganeti_plugin", "ganeti_plugin.contract"}
    assert set(loaded) <= ours | {"ganeti_plugin.contract.handover", "__future__", "_socket"}

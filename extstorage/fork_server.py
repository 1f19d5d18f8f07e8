# SPDX-License-Identifier: BSD-2-Clause
"""Loads what a provider's script needs, librados too, and for each call forks a process that becomes the script.

The server itself opens, reads and connects nothing, so that a fork finds the world as a new process would, and has one
thread. It knows nothing that is lost with it: killed at any moment, scripts do without it (`fork_client.py`), and forks
go on. When a file that it has loaded was replaced, it ends, and the next call starts another.
"""

from __future__ import annotations

import concurrent.futures.thread
import encodings.ascii
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Iterable, Mapping
from fcntl import F_GETFL, F_SETFL, F_SETOWN, fcntl
from typing import NamedTuple, NoReturn

from extstorage import actions, apply, files_store, fork_client, rados_store, session
from ganeti_plugin.contract import handover, systemd
from ganeti_plugin.entry import DEFECT, forget_output, guarded

#: What is here for the forks alone.
LOADED = (
    *(actions, apply, files_store, rados_store, session),
    *(concurrent.futures.thread, encodings.ascii, subprocess, tomllib, traceback),
)

#: Seconds without a call after which the server ends; systemd starts it again at the next.
IDLE = 600.0

#: Seconds for a client to send its request, which it does at once.
_PATIENCE = 1.0

#: Linux's limit for one message of a socket is below that.
_REQUEST_LIMIT = 1 << 20

#: What a client hears, in this order; then the exit status.
READY = b"?"
FORKED = b"!"

_HERE = len(fork_client.where())


class Call(NamedTuple):
    """One action that is to be done as if by the client."""

    program: str
    umask: int
    variables: list[bytes]
    #: Standard input, output and error, and the working directory.
    files: list[int]


def main() -> int:
    """Serve until nothing has called for a while."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing to clean up
    with systemd.passed_socket() as listener:
        serve(listener, IDLE)
    return 0


def serve(listener: socket.socket, idle: float) -> None:
    """Fork for each call. Ends after `idle` seconds without, or when the code is not what is installed any more."""
    code = loaded_files()
    gc.collect()
    gc.freeze()  # else a collection in a fork would copy every page that holds an object
    listener.settimeout(idle)
    while True:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            if _has_forks():
                continue
            return
        with client:
            if versions(code) != code:
                return
            _answer(listener, client)
        _has_forks()


def loaded_files() -> Mapping[str, tuple[int, int] | None]:
    """Every module and library that this process has loaded, and which version."""
    modules = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        mapped = {line.rstrip("\n").split(maxsplit=5)[-1] for line in stream if ".so" in line}
    return versions(filter(None, modules | mapped))


def versions(paths: Iterable[str]) -> Mapping[str, tuple[int, int] | None]:
    """Which version of each file is there now."""
    return {path: _version(path) for path in paths}


def _version(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _has_forks() -> bool:
    """Whether forks are at work; those that have ended are forgotten."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _answer(listener: socket.socket, client: socket.socket) -> None:
    """Fork, if this is a call for us; the client sees the connection end if it is not, and acts for itself."""
    try:
        call = _received(client)
    except (OSError, ValueError):
        return
    try:
        if call and not os.fork():
            listener.close()
            _act(client, call)
    except OSError:
        return  # no process or no memory is left for a fork
    finally:
        for number in call.files if call else ():
            os.close(number)


def _received(client: socket.socket) -> Call | None:
    """Raises OSError or ValueError when it is not a call."""
    client.settimeout(_PATIENCE)
    client.send(READY)
    request, files, _, _ = socket.recv_fds(client, _REQUEST_LIMIT, 4)
    client.settimeout(None)
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    parts = request.split(b"\0")
    if user != os.geteuid() or parts[:_HERE] != fork_client.where() or len(files) != 4 or len(parts) < _HERE + 2:
        for number in files:
            os.close(number)
        return None
    program, umask, *variables = parts[_HERE:]
    return Call(os.fsdecode(program), int(umask), variables, files)


def _act(client: socket.socket, call: Call) -> NoReturn:
    """In the fork: become the script, do the action, tell the client its exit status, end."""
    status = DEFECT
    try:
        _end_with(client)
        client.send(FORKED)
        _become(call)
        status = guarded("archipelago", actions.main)
        forget_output()
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        client.send(bytes([status]))
    finally:
        os._exit(status)


def _end_with(client: socket.socket) -> None:
    """Be ended by what ends the client: it sends the number of a signal, or the connection ends with it."""

    def heard(_number: int, _frame: object) -> None:
        try:
            said = client.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        signal.raise_signal(said[0] if said else signal.SIGTERM)

    signal.signal(signal.SIGIO, heard)
    fcntl(client, F_SETOWN, os.getpid())
    fcntl(client, F_SETFL, fcntl(client, F_GETFL) | os.O_ASYNC)
    heard(signal.SIGIO, None)  # of what came before the kernel was asked to tell


def _become(call: Call) -> None:
    *streams, directory = call.files
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.fchdir(directory)
    for number in call.files:
        os.close(number)
    os.umask(call.umask)
    sys.argv[:] = [call.program]
    handover.take_over(call.variables)

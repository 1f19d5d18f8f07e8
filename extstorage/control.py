# SPDX-License-Identifier: BSD-2-Clause
"""The control socket of an attached volume: one request and one reply, each a line of JSON, per connection.

It stands beside the NBD socket in the volume's directory under /run, which only the server's user and root may enter;
the server asks the kernel who calls all the same. Both halves are here: what the server's thread does, and the call.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from extstorage.errors import ServerError
from ganeti_plugin.errors import Error

if TYPE_CHECKING:
    import socket

SOCKET = "control.sock"

#: Exit status of a server that made room for a successor; the unit knows it.
REPLACED = 85

#: Seconds for an answer: a snapshot waits for the store's lock and for running requests, each at most a minute.
TIMEOUT = 240.0

#: Seconds after which the server looks after other things while nobody calls.
ACCEPT_TIMEOUT = 0.05

#: Bytes of a request or reply.
_LIMIT = 65536

Request = Mapping[str, object]
Handler = Callable[[Request], Mapping[str, object]]


def call(directory: Path, name: str, command: str, /, **arguments: object) -> Mapping[str, object]:
    """Ask a volume's server. Raises ServerError with its reason, or with the fact that it does not answer."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(TIMEOUT)
            caller.connect(str(directory / SOCKET))
            caller.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            reply = json.loads(_read_line(caller))
    except (OSError, ValueError) as error:
        raise ServerError(name=name, message=f"nothing ({error})") from None
    if not isinstance(reply, dict) or reply.get("ok") is not True:
        message = reply.get("message", "it refused") if isinstance(reply, dict) else "nonsense"
        raise ServerError(name=name, message=message)
    return reply


def _read_line(peer: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = peer.recv(4096)
        if not part or len(data) > _LIMIT:
            raise ValueError("the connection ended")
        data += part
    return data


def listen(directory: Path) -> socket.socket:
    """Make the socket; a dead predecessor's is replaced."""
    import socket

    path = directory / SOCKET
    temporary = directory / f".{SOCKET}"
    temporary.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(temporary))
    os.chmod(temporary, 0o600)
    listener.listen(8)
    listener.settimeout(ACCEPT_TIMEOUT)
    os.rename(temporary, path)
    return listener


def serve(listener: socket.socket, handler: Handler, idle: Callable[[], bool]) -> None:
    """Answer calls until `idle`, which runs between them, says that it is over."""
    while idle():
        try:
            peer, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError:
            return
        with peer:
            peer.settimeout(5.0)
            try:
                _answer(peer, handler)
            except (OSError, ValueError):
                continue
    listener.close()


def _caller(peer: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel knows them."""
    import socket

    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", credentials)
    return process, user


def _answer(peer: socket.socket, handler: Handler) -> None:
    _, user = _caller(peer)
    if user not in (0, os.geteuid()):
        return
    line = _read_line(peer)
    reply: Mapping[str, object]
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("not an object")
        reply = {"ok": True, **handler(request)}
    except Error as error:
        reply = {"ok": False, "message": str(error)}
    except OSError as error:
        reply = {"ok": False, "message": error.strerror or str(error)}
    except Exception as error:  # noqa: BLE001 - the server must go on, and the caller must hear why
        reply = {"ok": False, "message": f"{type(error).__name__}: {error}"}
    peer.sendall(json.dumps(reply).encode() + b"\n")

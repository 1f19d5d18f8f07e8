# SPDX-License-Identifier: BSD-2-Clause
"""The content of a qcow2 image over NBD, read by a QEMU in the same cage as the helper VM (threats H07, H22, H23).

The image comes as a descriptor and QEMU is told to open it as qcow2 without backing file: should the header check of
`containers` have missed a trick, the cage has no file to follow it to. QEMU without a machine and not qemu-nbd, because
it alone takes both the image and the listening socket as descriptors.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.errors import StateError
from snf_image import locks, machine
from snf_image.confined import confined
from snf_image.sandbox import Limits, Sandbox
from snf_image.source import Source

#: MiB for QEMU: its caches are bounded, and so is what a header can make it allocate.
_MEMORY = 512

#: Seconds for one answer on the control channel, and bytes of all answers together.
_ANSWER_TIMEOUT = 20.0
_ANSWER_LIMIT = 256 * 1024


class ReaderError(StateError):
    template = "the qcow2 image cannot be read: {reason}"


def command() -> list[str]:
    """QEMU's command. Descriptors: 0 is the control channel, 1 the image."""
    node = {"driver": "file", "node-name": "file", "filename": "/dev/fdset/1", "read-only": True}
    image = {"driver": "qcow2", "node-name": "image", "file": "file", "backing": None, "read-only": True}
    return [
        *(str(machine.QEMU), "-name", "snf-image-qcow2", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "none", "-sandbox", machine.SANDBOX),
        *("-chardev", "socket,id=control,fd=%fd0%", "-mon", "chardev=control,mode=control"),
        *("-add-fd", "fd=%fd1%,set=1", "-blockdev", json.dumps(node), "-blockdev", json.dumps(image)),
    ]


@contextmanager
def served(source: Source, seconds: int) -> Iterator[str]:
    """The URI of the image's content, as long as the context lasts."""
    _clean(locks.directory())
    path = locks.directory() / f"qcow2-{secrets.token_hex(8)}.sock"
    cage = Sandbox(name="qcow2", limits=Limits(memory=_MEMORY, seconds=seconds))
    ours, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with ours, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening:
        listening.bind(str(path))
        try:
            os.chmod(path, 0o600)
            with confined(cage, command(), (inside.fileno(), source.fd)) as cage_process:
                inside.close()
                try:
                    _serve(ours, listening)
                except (ReaderError, OSError) as error:
                    raise ReaderError(reason=cage_process.complaint() or str(error)) from None
                yield f"nbd+unix:///?socket={path}"
        finally:
            inside.close()
            with suppress(FileNotFoundError):
                os.unlink(path)


def _clean(directory: Path) -> None:
    """Remove the sockets of runs that were killed: nobody listens there any more (threat V07)."""
    for path in directory.glob("qcow2-*.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(1.0)
            try:
                link.connect(str(path))
            except ConnectionRefusedError:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            except OSError:
                continue


def _serve(control: socket.socket, listening: socket.socket) -> None:
    """Have QEMU offer the image on our listening socket (QMP)."""
    control.settimeout(_ANSWER_TIMEOUT)
    answers = _Answers(control)
    answers.next()  # the greeting
    _ask(control, answers, "qmp_capabilities")
    _ask(control, answers, "getfd", {"fdname": "listening"}, listening.fileno())
    _ask(control, answers, "nbd-server-start", {"addr": {"type": "fd", "data": {"str": "listening"}}})
    _ask(control, answers, "block-export-add", {"type": "nbd", "id": "image", "node-name": "image", "name": ""})


def _ask(
    control: socket.socket, answers: _Answers, name: str, arguments: Mapping[str, object] | None = None, *fds: int
) -> None:
    order = json.dumps({"execute": name, "arguments": dict(arguments or {})}).encode()
    socket.send_fds(control, [order], fds) if fds else control.sendall(order)
    while (answer := answers.next()).keys().isdisjoint({"return", "error"}):
        pass  # an event
    if "error" in answer:
        raise ReaderError(reason=f"{name}: {log.escape(json.dumps(answer['error']))[:300]}")


class _Answers:
    """QEMU's lines of JSON; it has met hostile bytes, so their number and form are bounded."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._buffer = b""
        self._taken = 0

    def next(self) -> dict[str, object]:
        while b"\n" not in self._buffer:
            data = self._control.recv(65536)
            self._taken += len(data)
            if not data or self._taken > _ANSWER_LIMIT:
                raise ReaderError(reason="the reader ended" if not data else "the reader talks too much")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise ReaderError(reason="the reader's answer is not JSON") from None
        if not isinstance(answer, dict):
            raise ReaderError(reason="the reader's answer is not an object")
        return answer

# SPDX-License-Identifier: BSD-2-Clause
"""The virtio-serial port, as the guest sees it: one request comes in, replies go out."""

from __future__ import annotations

import os
import time

from snf_image.protocol import FRAME_LIMIT, PORT, Frames, ProtocolError, Reply, Request, decode_request, encode

SYS_PORTS = "/sys/class/virtio-ports"

#: Seconds until the port must be there; it comes a moment after its driver.
WAIT = 20.0


def find(root: str = SYS_PORTS) -> str | None:
    """The device of our port."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return None
    for name in names:
        try:
            with open(f"{root}/{name}/name", encoding="ascii", errors="replace") as stream:
                if stream.read(128).strip() == PORT:
                    return f"/dev/{name}"
        except OSError:
            continue
    return None


class Channel:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def open(cls) -> Channel:
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            path = find()
            if path is not None and os.path.exists(path):
                return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            time.sleep(0.002)
        raise TimeoutError(f"the port {PORT} did not appear")

    def send(self, reply: Reply) -> None:
        data = memoryview(encode(reply))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def receive(self) -> Request:
        """The request, whenever it comes. While no host is connected, reading yields nothing at once."""
        frames = Frames(limit=FRAME_LIMIT, count=1)
        while True:
            data = os.read(self._descriptor, 65536)
            if not data:
                time.sleep(0.02)
            for frame in frames.feed(data):
                if not frames.is_empty():
                    raise ProtocolError("bytes follow the request")
                return decode_request(frame)

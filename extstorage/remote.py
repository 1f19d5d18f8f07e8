# SPDX-License-Identifier: BSD-2-Clause
"""Our end of the program that fetches a URL (fetch.py): what it is told, and what it says in the end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from extstorage.confined import confined_online, kill, seconds
from extstorage.fetch import TOTAL
from ganeti_plugin.errors import InputError, StateError
from ganeti_plugin.run import spawn

_COMMAND = Path(__file__).resolve().parents[1] / "archipelago"
_PREFIX = "error: archipelago: "


class RefusedUrlError(InputError):
    template = "{message}"


class UnreachableUrlError(StateError):
    template = "{message}"


class Terms(Protocol):
    """What the settings allow."""

    @property
    def limit(self) -> int: ...
    @property
    def hosts(self) -> Sequence[str]: ...
    @property
    def networks(self) -> Sequence[str]: ...


class Remote(NamedTuple):
    """A URL that is being fetched: read `descriptor` to its end, then ask `check` whether that was all."""

    process: subprocess.Popen[bytes]
    descriptor: int
    complaints: int

    @classmethod
    @contextlib.contextmanager
    def started(cls, url: str, terms: Terms, *, has_digest: bool) -> Iterator[Remote]:
        job: dict[str, object] = {"url": url, "hosts": list(terms.hosts), "networks": list(terms.networks)}
        job |= {"has_digest": has_digest, "limit": terms.limit, "seconds": seconds(terms.limit, TOTAL)}
        with contextlib.ExitStack() as stack:
            asking, told = os.pipe2(os.O_CLOEXEC)
            reading, writing = os.pipe2(os.O_CLOEXEC)
            complaints, complaining = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            for descriptor in (reading, complaints):
                stack.callback(os.close, descriptor)
            try:
                command: list[str | Path] = [*confined_online(terms.limit), _COMMAND, "fetch"]
                process = spawn(command, stdin=asking, stdout=writing, stderr=complaining, new_session=True)
            finally:
                for descriptor in (asking, writing, complaining):
                    os.close(descriptor)
            stack.callback(kill, process)
            with contextlib.suppress(BrokenPipeError), open(told, "wb") as stream:
                stream.write(json.dumps(job).encode())
            yield cls(process, reading, complaints)

    def check(self) -> None:
        status = self.process.wait()
        if not status:
            return
        text = ""
        with contextlib.suppress(BlockingIOError):
            text = os.read(self.complaints, 4096).decode("utf-8", "replace").strip()
        last = text.splitlines()[-1] if text else f"the URL can't be fetched (status {status})"
        kind = RefusedUrlError if status == InputError.exit_status else UnreachableUrlError
        raise kind(message=last.removeprefix(_PREFIX))

# SPDX-License-Identifier: BSD-2-Clause
"""Starting and stopping the server of a volume.

With systemd as PID 1 it is an instance of a template unit: limits, sandbox, restart and logs are systemd's work.
Elsewhere the same program runs as a plain daemon: without sandbox, and restarted only by the next attach.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from extstorage import answer, control
from extstorage.errors import ServerError
from extstorage.identity import acting_as, ids_of
from extstorage.specs import RadosSpec, spec_of
from extstorage.stores import STORE_FILE, asks_the_network
from ganeti_plugin.errors import CommandError, Error, InputError
from ganeti_plugin.files import read_bounded, remove, remove_tree, write_atomically
from ganeti_plugin.log import warning
from ganeti_plugin.run import run

PLUGIN = Path(__file__).resolve().parent / "nbdkit_plugin.py"

#: The plugin that runs the other one, as nbdkit's own "python" does, and answers reads of plain blocks itself.
NATIVE = Path("/usr/lib/snf-ganeti/nbdkit-archipelago-plugin.so")

#: Seconds. A stop flushes what the guest wrote, which may be much. A detach ends a device and then a server, within the
#: 900 s that Ganeti waits for it; what did not end by then is found ended by the next detach.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 420.0
DEVICE_STOP_TIMEOUT = 240.0

#: Seconds until a block device that somebody has open is called in use; a QEMU that was killed needs a moment.
IN_USE_TIMEOUT = 20.0
_POLL = 0.02

_SYSTEMD = Path("/run/systemd/system")


class Site(NamedTuple):
    """Where things are on this node."""

    #: The configuration's table: name of each store and where it is (see stores.py).
    stores: Mapping[str, str]
    default_store: str
    user: str
    #: The table of Pithos stores, where blocks are read that no store of ours has (see pithos.py).
    pithos: Mapping[str, str] = MappingProxyType({})
    run: Path = Path(answer.RUN)
    devices: Path = Path(answer.DEVICES)

    def directory(self, name: str) -> Path:
        return self.run / name

    def device_directory(self, name: str) -> Path:
        return self.devices / name

    def socket(self, name: str) -> Path:
        return self.run / name / "nbd.sock"

    @property
    def uses_units(self) -> bool:
        """Units know only the usual paths, and need systemd as PID 1."""
        usual = self.run == Path(answer.RUN) and self.devices == Path(answer.DEVICES)
        return usual and _SYSTEMD.is_dir() and os.geteuid() == 0


def unit_of(site: Site, name: str, store: str) -> str:
    """The unit that serves a volume of that store: the servers of a files store have no network."""
    local, remote = units_of(name)
    try:
        needs_network = isinstance(spec_of(site.stores, store), RadosSpec) or asks_the_network(site.pithos)
        return remote if needs_network else local
    except InputError:  # the server itself says so; it must run, so that the volume can be attached and removed
        return local


def units_of(name: str) -> tuple[str, str]:
    """The units that may serve a volume: which one depends on the store's kind when it was started."""
    return f"snf-archipelago@{name}.service", f"snf-archipelago-rados@{name}.service"


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def is_running(site: Site, name: str) -> bool:
    return answer.is_serving(str(site.directory(name)))


def start(site: Site, name: str, store: str, fault: str = "") -> None:
    """Have the volume, which is in that store, served; nothing happens if it is.

    With a `fault`, the server is to look for nothing, and to answer every request with an error.
    """
    if is_running(site, name):
        return
    prepare_directory(site, name, store)
    _set_fault(site, name, fault)
    try:
        _start(site, name, store)
    except (CommandError, ServerError) as error:
        # A server with a predecessor ends when its store can't be asked, and a guest goes on waiting for the next one.
        # But whoever attaches must get one, even if it has but errors for answers.
        if fault:
            raise
        warning("%s", error)
        _set_fault(site, name, f"the store {store!r} could not be asked when the volume was attached")
        _start(site, name, store)


def _set_fault(site: Site, name: str, fault: str) -> None:
    path = site.directory(name) / answer.FAULT_FILE
    with acting_as(site.user):
        if fault:
            write_atomically(path, f"{fault}\n".encode(), durable=False)
        else:
            remove(path)


def _start(site: Site, name: str, store: str) -> None:
    if site.uses_units:
        run(["systemctl", "start", unit_of(site, name, store)], timeout=START_TIMEOUT)
    else:
        _start_plain(site, name)
    if not wait_for(lambda: is_running(site, name), START_TIMEOUT):
        raise ServerError(name=name, message="nothing, although it was started")


def plugin() -> Sequence[str | Path]:
    """What nbdkit is to run. In a checkout, where nothing has been compiled, Python answers everything."""
    return (NATIVE if NATIVE.exists() else "python", PLUGIN)


def _start_plain(site: Site, name: str) -> None:
    directory = site.directory(name)
    for leftover in ("nbd.sock", "nbdkit.pid"):
        (directory / leftover).unlink(missing_ok=True)
    # The group, too: without it the server would go on in root's.
    user: list[str | Path] = ["--user", site.user, "--group", str(ids_of(site.user)[1])] if os.geteuid() == 0 else []
    run(
        [
            *("nbdkit", "--unix", site.socket(name), "--pidfile", directory / "nbdkit.pid", *user),
            *(*plugin(), f"volume={name}", f"run={directory}"),
        ],
        timeout=START_TIMEOUT,
    )


def prepare_directory(site: Site, name: str, store: str) -> Path:
    """The volume's directory under /run, which belongs to the store's user, with the name of the store in it."""
    site.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory = site.directory(name)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o750)
    os.chown(directory, *ids_of(site.user))  # each time: an attach may have been killed in between
    with acting_as(site.user):  # never as root: the directory is another user's
        write_atomically(directory / STORE_FILE, f"{store}\n".encode(), durable=False)
    return directory


def recorded_store(site: Site, name: str) -> str:
    """The name of the store that an attached volume is in; "" when it is not attached."""
    try:
        with acting_as(site.user):
            return read_bounded(site.directory(name) / STORE_FILE, 256).decode("ascii").strip()
    except (OSError, ValueError, Error):
        return ""


def stop(site: Site, name: str) -> None:
    """End the server; it flushes first. Nothing happens if there is none."""
    if site.uses_units:
        run(["systemctl", "stop", *units_of(name)], timeout=STOP_TIMEOUT)
        run(["systemctl", "reset-failed", *units_of(name)], allowed=(0, 1))
        return
    if not is_running(site, name):
        return
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(int((site.directory(name) / "nbdkit.pid").read_text()))
        try:
            with contextlib.suppress(ServerError):  # it may be ending already
                control.call(site.directory(name), name, "stop")
            _await_end(name, process)
        finally:
            os.close(process)


def _await_end(name: str, process: int) -> None:
    """`process` is a pidfd: readable when the process has ended, also while nobody has collected its exit status."""
    ended, _, _ = select.select([process], [], [], STOP_TIMEOUT)
    if not ended:
        raise ServerError(name=name, message=f"nothing; it did not end within {STOP_TIMEOUT:g} s")


def restart(site: Site, name: str) -> None:
    """Replace the server by another process, under its clients. The unit starts it by itself."""
    with _process_of(site, name) as process:
        control.call(site.directory(name), name, "replace")
        _await_end(name, process)
    if not site.uses_units:
        _start_plain(site, name)
    if not wait_for(lambda: is_running(site, name), START_TIMEOUT):
        raise ServerError(name=name, message="nothing, although it was restarted")


@contextlib.contextmanager
def _process_of(site: Site, name: str) -> Iterator[int]:
    """A descriptor that becomes readable when the server's process has ended."""
    pid = int(str(control.call(site.directory(name), name, "status")["pid"]))
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)


def remove_directory(site: Site, name: str) -> None:
    """Remove what a stopped server left under /run."""
    remove_tree(site.directory(name))

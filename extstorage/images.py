# SPDX-License-Identifier: BSD-2-Clause
"""Importing a disk image: judge the container, copy its bytes into a new volume, freeze that as a snapshot with a name.

The copy is nbdcopy's, into a server of our own that lives as long as the import: it leaves holes out, and takes the
data path of guests. A qcow2 file is read by qemu-nbd, which is confined: another user, no network, no new
privileges, and it never sees the file, only its bytes over a socket. Nothing here looks at what the image contains.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from extstorage import apply, catalog, servers
from extstorage.errors import AlreadyThereError, BadNameError
from extstorage.identity import ids_of
from extstorage.names import LONGEST_NAME, check_name
from extstorage.servers import Site
from extstorage.store import Info
from ganeti_plugin import containers
from ganeti_plugin.errors import CommandError, InputError
from ganeti_plugin.run import quoted, spawn

PREFIX = "import-"
MOST_PROPERTIES = 256
LONGEST_VALUE = 65536

#: Seconds that a program which we start has until its socket is there.
_START = 30.0

#: Limits of the process that reads a container format: address space and CPU time.
_ADDRESS_SPACE = 4 << 30
_CPU_SECONDS = 3600
_NOBODY = 65534

Progress = Callable[[int], None]


class UnusableFileError(InputError):
    template = "the file {path} can't be imported: {reason}"


class BadPropertyError(InputError):
    template = "the property {text!r} is not acceptable: {reason}"


def parse_properties(texts: list[str]) -> dict[str, str]:
    """KEY=VALUE as given on the command line; names are kept in upper case, as snf-image compares them."""
    found = {}
    for text in texts[: MOST_PROPERTIES + 1]:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
            raise BadPropertyError(text=text[:80], reason="it must be NAME=VALUE, the name of letters, digits and '_'")
        if len(value) > LONGEST_VALUE or "\0" in value:
            raise BadPropertyError(text=text[:80], reason="the value is too long or holds a NUL")
        found[name.upper()] = value
    if len(found) > MOST_PROPERTIES:
        raise BadPropertyError(text="", reason=f"there are more than {MOST_PROPERTIES}")
    return found


def import_image(
    site: Site, name: str, path: Path, declared: str, properties: Mapping[str, str], progress: Progress
) -> None:
    """Make the image `name` from a file. `progress` is called with per cents.

    Whatever goes wrong, nothing is left in the store; after kill -9, the next import of that name cleans up.
    """
    if len(check_name(name, "the image name")) > LONGEST_NAME - len(PREFIX):
        raise BadNameError(what="the image name", name=name, reason=f"it is longer than {LONGEST_NAME - len(PREFIX)}")
    with _opened(path) as source:
        verdict = containers.judge(source, declared)
        before = os.fstat(source)
        temporary = f"{PREFIX}{name}"
        with _temporary_volume(site, name, temporary, verdict.virtual_size), _served(site, temporary) as target:
            with _readable(source, verdict.format) as readable:
                _copy(readable, target, source, progress)
            after = os.fstat(source)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise UnusableFileError(path=path, reason="it was changed while it was read")
            facts = Info(created=time.time(), image=True, properties=dict(properties))
            apply.call_server(site, temporary, "snapshot", name=name, facts=facts._asdict())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open once; every later look goes to this descriptor, so that nobody can swap the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnusableFileError(path=path, reason=error.strerror) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnusableFileError(path=path, reason="it is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary_volume(site: Site, name: str, temporary: str, size: int) -> Iterator[None]:
    with apply.using_store(site) as store:
        if store.exists(name):
            kind = catalog.item(store, name, "image").kind
            raise AlreadyThereError(name=name, store=store.title, what=kind)
        # What a killed import left; while an import runs, its server holds the lock and this is refused.
        catalog.remove(store, temporary)
        catalog.create_volume(store, temporary, size)
    try:
        yield
    finally:
        apply.remove_stopped(site, temporary)


@contextlib.contextmanager
def _served(site: Site, name: str) -> Iterator[str]:
    """A server that ends with us, even if we are killed."""
    directory = servers.prepare_directory(site, name, site.default_store)
    (directory / "nbd.sock").unlink(missing_ok=True)
    process = spawn(
        [
            *(*_becoming(site), "nbdkit", "--foreground", "--exit-with-parent", "--unix", str(site.socket(name))),
            *("python", str(servers.PLUGIN), f"volume={name}", f"run={directory}"),
        ]
    )
    try:
        _await(process, lambda: servers.is_running(site, name))
        yield f"nbd+unix:///?socket={site.socket(name)}"
    finally:
        _end(process)
        servers.remove_directory(site, name)


def _becoming(site: Site) -> list[str]:
    """Change the user before nbdkit starts: a change afterwards (--user) undoes --exit-with-parent."""
    if os.geteuid() != 0:
        return []
    user, group = ids_of(site.user)
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]


def _await(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            arguments = [os.fsdecode(argument) for argument in _arguments(process)]
            raise CommandError(
                program=arguments[0],
                reason="it did not come up",
                detail=f"exit code {process.poll()}",
                command=quoted(arguments),
            )
        time.sleep(0.02)


def _arguments(process: subprocess.Popen[bytes]) -> list[str]:
    arguments = process.args
    return [str(argument) for argument in arguments] if isinstance(arguments, list) else [str(arguments)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(servers.STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextlib.contextmanager
def _readable(source: int, kind: containers.Format) -> Iterator[str]:
    """What nbdcopy can read the disk's bytes from."""
    if kind is containers.Format.RAW:
        yield f"/proc/self/fd/{source}"
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="snf-archipelago-import-", dir="/run"))
        os.chmod(folder, 0o711)
        private = Path(folder) / "qemu"
        private.mkdir(mode=0o700)
        os.chown(private, _NOBODY, _NOBODY)
        raw, out = Path(folder) / "raw.sock", private / "out.sock"
        reader = spawn(
            ["nbdkit", "-f", "--exit-with-parent", "-r", "--unix", raw, "file", f"/proc/self/fd/{source}"],
            pass_fds=(source,),
        )
        stack.callback(_end, reader)
        _await(reader, raw.exists)
        os.chmod(raw, 0o666)
        qemu_nbd = ["qemu-nbd", "-r", "-t", "-f", str(kind), "-k", str(out), f"nbd+unix:///?socket={raw}"]
        converter = spawn([*_CONFINED, *qemu_nbd])
        # unshare(1) waits for its child with SIGTERM blocked; killed, it takes the child along.
        stack.callback(_kill, converter)
        _await(converter, out.exists)
        yield f"nbd+unix:///?socket={out}"


_CONFINED = (
    *("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"),
    *("setpriv", "--pdeathsig", "KILL", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"),
    *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
    *("prlimit", f"--as={_ADDRESS_SPACE}", f"--cpu={_CPU_SECONDS}", "--core=0", "--fsize=0"),
)


def _copy(source: str, target: str, descriptor: int, progress: Progress) -> None:
    """Copy with nbdcopy, which leaves out what is zero."""
    reading, writing = os.pipe()
    command: list[str | Path] = [
        *("nbdcopy", f"--progress={writing}", "--destination-is-zero", "--sparse=4096", "--flush", source, target),
    ]
    with tempfile.TemporaryFile() as messages:
        process = spawn(command, pass_fds=(writing, descriptor), stderr=messages.fileno())
        os.close(writing)
        try:
            with os.fdopen(reading, "rb") as stream:
                for line in stream:
                    percent = line.partition(b"/")[0]
                    if percent.isdigit():
                        progress(int(percent))
            if process.wait() != 0:
                messages.seek(0)
                detail = messages.read(4096).decode("utf-8", "replace").strip()
                reason = f"exit code {process.returncode}"
                raise CommandError(program="nbdcopy", reason=reason, detail=detail, command=quoted(command))
        finally:
            if process.poll() is None:
                _end(process)

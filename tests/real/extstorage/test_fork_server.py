# SPDX-License-Identifier: BSD-2-Clause
"""Scripts with and without the fork server: nobody can tell the difference, whoever dies at whatever moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from extstorage import specs
from extstorage.rados_store import create_store
from extstorage.specs import RadosSpec
from ganeti_plugin.files import locked
from tests.real.extstorage.ceph import Ceph
from tests.real.extstorage.provider import (
    ACTIONS,
    SCRIPTS,
    STORE,
    do,
    eventually,
    new_name,
    script,
    systemctl,
    traces,
    without_fork_server,
)

CALLERS = 4


def server() -> int:
    """The process id of the server; it is started by the first call."""
    return int(systemctl("show", "--property=MainPID", "--value", f"{ACTIONS}.service"))


def forks() -> list[int]:
    """The processes that act now."""
    found = Path(f"/proc/{server()}/task/{server()}/children").read_text().split()
    return [int(number) for number in found if "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()]


@pytest.fixture(autouse=True)
def _served() -> Iterator[None]:
    systemctl("start", f"{ACTIONS}.socket")
    script("verify", new_name())
    assert server()
    yield
    systemctl("start", f"{ACTIONS}.socket")


@pytest.fixture(name="volume")
def _volume() -> Iterator[str]:
    name = new_name()
    do("create", name, VOL_SIZE="64")
    yield name
    do("detach", name)
    do("remove", name)
    assert traces(name) == []


def start(action: str, volume: str, **more: str) -> subprocess.Popen[str]:
    environment = {"VOL_NAME": volume, "EXTP_ACCESS": "userspace", **more}
    pipe = subprocess.PIPE
    return subprocess.Popen([SCRIPTS / action], env=environment, stdout=pipe, stderr=pipe, text=True)


@contextlib.contextmanager
def held_store() -> Iterator[None]:
    """Until this ends, an action that changes the store waits."""
    with locked(STORE / "lock", timeout=30):
        yield


def waiting(volume: str) -> tuple[subprocess.Popen[str], int]:
    """A script whose action is under way, and the process that does it; it goes on when the store is let go."""
    process = start("setinfo", volume, VOL_METADATA="originstname+web1")
    eventually(lambda: any(is_waiting(pid) for pid in forks()))
    return process, next(pid for pid in forks() if is_waiting(pid))


def is_waiting(pid: int) -> bool:
    """Whether it is in the action: it has the store's lock open."""
    directory = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(FileNotFoundError):
        return any(os.readlink(entry) == str(STORE / "lock") for entry in directory.iterdir())
    return False


CALLS: tuple[tuple[str, dict[str, str]], ...] = (
    ("attach", {}),
    ("open", {"VOL_OPEN_EXCLUSIVE": "True"}),
    ("open", {"VOL_OPEN_EXCLUSIVE": "true"}),
    ("setinfo", {"VOL_METADATA": "originstname+web1", "DEBUG_LEVEL": "1"}),
    ("grow", {"VOL_SIZE": "64", "VOL_NEW_SIZE": "32"}),
    ("create", {"VOL_SIZE": "64", "EXTP_FOO": "1"}),
    ("create", {"VOL_SIZE": "64", "EXTP_ORIGIN": "no-such-image"}),
    ("close", {}),
    ("verify", {}),
)


def test_nobody_can_tell_the_difference(volume: str) -> None:
    def said() -> list[tuple[int, str, str]]:
        done = [script(action, volume, **more) for action, more in CALLS]
        return [(one.returncode, one.stdout, one.stderr) for one in done]

    first = server()
    with_server = said()
    assert server() == first
    with without_fork_server():
        assert said() == with_server
        assert not server()


def test_an_answer_that_can_t_be_written_fails(volume: str) -> None:
    do("attach", volume)
    environment = {"VOL_NAME": volume, "EXTP_ACCESS": "userspace"}
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run([SCRIPTS / "attach"], env=environment, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"error: archipelago: No space left on device\n")


def test_the_server_has_one_thread_and_no_connection() -> None:
    status = Path(f"/proc/{server()}/status").read_text()
    assert "\nThreads:\t1\n" in status
    assert "librados.so" in Path(f"/proc/{server()}/maps").read_text()
    assert sorted(int(entry.name) for entry in Path(f"/proc/{server()}/fd").iterdir()) == [0, 1, 2, 3]


CLONE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from extstorage import actions, apply, fork_server
from extstorage.servers import Site
apply.site = lambda: Site({"main": sys.argv[2]}, "main", "root", {})
loaded = set(sys.modules)
os.environ.update(VOL_NAME="web", VOL_SIZE="64", VOL_SNAPSHOT_NAME="image", VOL_SNAPSHOT_SIZE="64")
for action in ("create", "snapshot", "create"):
    sys.argv[0] = action
    actions.main()
    os.environ.update(VOL_NAME="clone" if action == "snapshot" else "web", EXTP_ORIGIN="image")
print(*sorted(set(sys.modules) - loaded))
"""


def test_a_clone_in_rados_finds_everything_loaded(ceph: Ceph) -> None:
    spec = ceph.spec("forks")
    create_store(cast("RadosSpec", specs.parse(spec))).close()
    command = [sys.executable, "-Es", "-c", CLONE, str(SCRIPTS.resolve().parents[1]), spec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_reaches_the_action(volume: str, number: signal.Signals) -> None:
    with held_store():
        process, fork = waiting(volume)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (128 + number, f"error: archipelago: interrupted by {number.name}\n")
        assert fork not in forks()


def test_the_action_ends_with_a_script_that_is_killed(volume: str) -> None:
    with held_store():
        process, fork = waiting(volume)
        process.kill()
        eventually(lambda: fork not in forks())
        process.communicate(timeout=30)


@pytest.mark.parametrize("way", ["kill", "stop", "restart"])
def test_an_action_goes_on_without_its_server(volume: str, way: str) -> None:
    with held_store():
        process, fork = waiting(volume)
        if way == "kill":
            os.kill(server(), signal.SIGKILL)
        else:
            systemctl(way, f"{ACTIONS}.service")
        assert Path(f"/proc/{fork}/fd").is_dir()
        assert process.poll() is None
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
    do("verify", volume)


def test_an_action_that_is_killed_is_done_again(volume: str) -> None:
    with held_store():
        process, fork = waiting(volume)
        os.kill(fork, signal.SIGKILL)
        eventually(lambda: is_waiting(process.pid))
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_a_server_that_hangs_is_done_without(volume: str) -> None:
    hanging = server()
    os.kill(hanging, signal.SIGSTOP)
    try:
        do("verify", volume)
    finally:
        os.kill(hanging, signal.SIGCONT)
    do("verify", volume)
    assert server() == hanging


def test_a_server_that_is_killed_again_and_again_harms_nobody() -> None:
    volumes = [new_name() for _ in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as pool:
        created = [pool.submit(do, "create", volume, VOL_SIZE="64") for volume in volumes]
        while not all(one.done() for one in created):
            with contextlib.suppress(ProcessLookupError):
                if pid := server():
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for one in created:
            one.result()
    for volume in volumes:
        assert traces(volume) != []
        do("remove", volume)
        assert traces(volume) == []


def test_a_server_that_can_t_start_is_tried_again() -> None:
    """systemd gives a socket up for good that has started a service more than 20 times in 2 s (TriggerLimitBurst=)."""
    settings = Path(f"/run/systemd/system/{ACTIONS}.service.d/broken.conf")
    settings.parent.mkdir()
    settings.write_text("[Service]\nExecStart=\nExecStart=/bin/false\n")
    try:
        systemctl("daemon-reload")
        systemctl("stop", f"{ACTIONS}.service")
        assert script("verify", new_name()).returncode == 1
        assert systemctl("is-active", f"{ACTIONS}.socket") == "active"
    finally:
        shutil.rmtree(settings.parent)
        systemctl("daemon-reload")
    script("verify", new_name())
    assert server()


def test_twenty_actions_at_once() -> None:
    volumes = [new_name() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda volume: do("create", volume, VOL_SIZE="64"), volumes))
        list(pool.map(lambda volume: do("remove", volume), volumes))
    eventually(lambda: forks() == [])
    assert [traces(volume) for volume in volumes] == [[]] * 20


def test_replaced_code_is_not_run_by_an_old_server(volume: str) -> None:
    """As dpkg does it: a new file under the old name."""
    old = server()
    module = Path("/usr/share/snf-ganeti/extstorage/actions.py")
    copy = module.with_name("actions.py.dpkg-new")
    copy.write_bytes(module.read_bytes())
    os.utime(copy, ns=(module.stat().st_atime_ns, module.stat().st_mtime_ns))
    copy.rename(module)
    do("verify", volume)
    eventually(lambda: server() != old)
    do("verify", volume)
    assert server()


def test_another_tree_s_scripts_act_for_themselves(tmp_path: Path, volume: str) -> None:
    """A checkout beside the installed packages: its own code runs. So does that of another mount namespace."""
    for words in (["cp", "-a", "/usr/share/snf-ganeti", str(tmp_path)], ["sync"]):
        subprocess.run(words, check=True, timeout=60)
    tree = tmp_path / "snf-ganeti"
    (tree / "extstorage" / "actions.py").write_text("def main() -> int:\n    return 9\n")
    other = tree / "extstorage" / "archipelago" / "verify"
    done = subprocess.run([other], env={"VOL_NAME": volume}, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (9, b"")

# SPDX-License-Identifier: BSD-2-Clause
"""The commands of the testbed: up, down, exec, status, deploy, and what can befall a node."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.errors import InputError, StateError
from ganeti_plugin.files import LockedError, locked
from ganeti_plugin.run import run
from tests.testbed import ceph, cgroup, cluster, node, roots, world
from tests.testbed.layout import (
    CACHE,
    DEMO_LOCK,
    LOCK,
    MOST_NODES,
    RELEASES,
    SCRATCH,
    SHARED,
    SHARED_AT,
    SLOT,
    STATE,
    Node,
)

EXEC_LEAF = "exec"

#: What can befall a node.
FATES = {
    "kill": "end all processes of a node at once, as a power cut would; its files stay",
    "boot": "boot a killed node again",
    "freeze": "stop all processes of a node, as if it hung",
    "thaw": "let them go on",
}

SHARED_BIND = f"{SHARED}:{SHARED_AT}"

INSTALL = "apt-get -o Dpkg::Use-Pty=0 -qq -y --no-download install"

UPDATE = (
    "apt-get -qq update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/snf-ganeti.list "
    "-o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0"
)


class BusyError(LockedError):
    template = "another testbed command is changing the testbed"
    hint = "wait for it to end"


class DemoError(StateError):
    template = "a demo is running (process {pid}) and this is its testbed"
    hint = "wait for it to end, or use another one: SNF_TESTBED_SLOT=1"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="testbed",
        description="Real Ganeti nodes on this machine, in namespaces of their own; nothing of the host changes.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong use; exec passes on the command's own.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="make the nodes and the cluster (removes an older testbed first)")
    up.add_argument("--nodes", type=int, default=1, metavar="N", help="how many nodes, 1 to 8 (default 1)")
    up.add_argument("--release", choices=RELEASES, default=RELEASES[0], help="Debian release of the nodes")
    up.add_argument("--tools", action="store_true", help="also install the programs that tests inside of nodes need")
    up.add_argument("--ceph", action="store_true", help="also a real Ceph (one monitor, one OSD in memory) on node1")
    up.add_argument("--fresh", action="store_true", help="install the packages anew, even if nothing has changed")
    up.add_argument("--no-cluster", action="store_true", help="boot the nodes, but initialize no cluster")
    up.add_argument("--access", choices=("userspace", "kernelspace"), help="of ext disks (default by release)")
    commands.add_parser("down", help="end everything and remove it")
    run_in = commands.add_parser("exec", help="run a command in a node, or in 'outside', the router's namespace")
    run_in.add_argument("place", metavar="NODE")
    run_in.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND...")
    status = commands.add_parser("status", help="what is up")
    status.add_argument("--json", action="store_true", help="for programs")
    commands.add_parser("deploy", help="install the packages of build/repo into the running nodes")
    for name, text in FATES.items():
        commands.add_parser(name, help=text).add_argument("place", metavar="NODE")
    return top


def main() -> int:
    arguments = parser().parse_args()
    if os.geteuid() != 0:
        raise InputError(message="the testbed must run as root, since it makes namespaces and mounts", hint="use sudo")
    if arguments.command == "exec":
        return execute(arguments.place, arguments.words)
    if arguments.command == "status":
        return status(as_json=arguments.json)
    refuse_during_demo()
    with alone():
        if arguments.command == "up":
            up(arguments)
        elif arguments.command == "deploy":
            deploy()
        elif arguments.command in FATES:
            befall(_node(arguments.place), arguments.command)
        else:
            down()
    return 0


def refuse_during_demo() -> None:
    """Keep a demo's testbed for the demo, which calls us itself: it is then an ancestor of ours."""
    if SLOT != 0 or not DEMO_LOCK.exists():
        return
    inode = f":{DEMO_LOCK.stat().st_ino}"
    locks = [
        line.split() for line in Path("/proc/locks").read_text().splitlines() if "FLOCK" in line and "->" not in line
    ]
    holders = {int(fields[4]) for fields in locks if fields[5].endswith(inode)}
    if holders and not holders & _ancestors():
        raise DemoError(pid=min(holders))


def _ancestors() -> set[int]:
    found: set[int] = set()
    pid = os.getpid()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


@contextlib.contextmanager
def alone() -> Iterator[None]:
    try:
        with locked(LOCK, timeout=0):
            yield
    except LockedError:
        raise BusyError from None


def up(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.nodes <= 8:
        raise InputError(message=f"--nodes {arguments.nodes} is not between 1 and 8")
    down()
    made = roots.Roots(release=arguments.release)
    roots.need_base(made)
    world.start()
    SHARED.mkdir(parents=True)
    try:
        extra = roots.Extra(release=arguments.release, tools=arguments.tools, ceph=arguments.ceph)
        layer = _layer(made, extra, fresh=arguments.fresh)
        nodes = [Node(index=index) for index in range(1, arguments.nodes + 1)]
        for one in nodes:
            log.info("booting %s", one.name)
            node.boot(one, [layer, made.base], nodes=len(nodes), binds=[SHARED_BIND])
        (STATE / "nodes.json").write_text(json.dumps({"nodes": len(nodes), "release": arguments.release}))
        if arguments.ceph:
            ceph.make(nodes)
        if not arguments.no_cluster:
            default = "userspace" if arguments.release == "bookworm" else "kernelspace"
            cluster.make(nodes, access=arguments.access or default)
    except BaseException:
        _keep_logs()
        down()
        raise


def _keep_logs() -> None:
    """What the nodes printed, for whoever must find out why they did not come up."""
    target = CACHE / "testbed/last-failure"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(STATE, target, ignore=lambda _, names: [name for name in names if not name.endswith(".log")])
    log.warning("the testbed did not come up; its logs are in %s", target)


def _layer(made: roots.Roots, extra: roots.Extra, *, fresh: bool) -> Path:
    """The layer in which apt installed our packages, made in a booted node unless it is cached."""
    with (
        locked(made.lock, timeout=roots.PATIENCE),
        # tests/packaging/build-packages must not replace the packages while apt reads them.
        locked(roots.REPOSITORY.with_name(".packages.lock"), timeout=roots.PATIENCE, shared=True),
    ):
        layer = made.layer(extra)
        if fresh or not layer.exists():
            _make_layer(made, layer, extra)
    return layer


def _make_layer(made: roots.Roots, layer: Path, extra: roots.Extra) -> None:
    packages = ("snf-ganeti", *extra.packages())
    log.info("fetching what apt needs for %s", packages[0])
    roots.download(made, packages)
    builder = Node(index=8)
    node.boot(builder, [made.base], nodes=1, binds=[f"{made.archives}:/archives", f"{roots.REPOSITORY}:/repo"])
    log.info("apt-get install snf-ganeti, in a fresh node")
    node.inside(builder, ["sh", "-ec", f"{UPDATE}; {INSTALL} {' '.join(packages)}; rm -f /etc/machine-id"], timeout=900)
    node.power_off(builder)
    shutil.rmtree(layer, ignore_errors=True)
    _remove_old_layers(layer, made.release)
    shutil.move(builder.directory / "upper", layer)
    node.forget(builder)


def _remove_old_layers(layer: Path, release: str, *, keep: int = 12) -> None:
    """Keep the newest layers only: one may be in use by a testbed in another slot."""
    old = sorted(layer.parent.glob(f"layer-{release}-*"), key=lambda path: path.stat().st_mtime)
    for path in old[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def down() -> None:
    """End and remove everything, also what a killed run has left."""
    cgroup.kill()
    for index in range(1, MOST_NODES + 1):
        node.forget(Node(index=index))
    shutil.rmtree(SCRATCH, ignore_errors=True)
    shutil.rmtree(STATE, ignore_errors=True)


def execute(place: str, words: list[str]) -> int:
    if not words:
        raise InputError(message="exec needs a command to run")
    if place == "outside":
        prefix = world.enter("outside")
    else:
        prefix = node.enter(_node(place))
    cgroup.join(EXEC_LEAF)
    environment = {**node.ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
    os.execvpe(prefix[0], [*prefix, *words], environment)


def _node(name: str) -> Node:
    known = [Node(index=index) for index in range(1, MOST_NODES + 1)]
    for one in known:
        if one.name == name:
            return one
    raise InputError(message=f"there is no place '{name}'", hint="use node1 to node8, or outside")


def status(*, as_json: bool) -> int:
    running = []
    if cgroup.populated():
        for index in range(1, MOST_NODES + 1):
            with contextlib.suppress(StateError):
                running.append({"node": Node(index=index).name, "pid": node.leader(Node(index=index))})
    if as_json:
        print(json.dumps({"up": bool(running), "nodes": running}))
    else:
        print("\n".join(f"{row['node']}  systemd is pid {row['pid']}" for row in running) or "no testbed is up")
    return 0


def befall(one: Node, fate: str) -> None:
    if fate == "boot":
        node.boot_again(one, binds=[SHARED_BIND])
    elif fate == "kill":
        node.kill(one)
    else:
        cgroup.freeze(one.name, fate == "freeze")


def deploy() -> None:
    """Install the current packages into the running nodes, as an upgrade, or for those of the same version.

    By dpkg: apt takes packages of one version for the same, or fetches what it can't get.
    """
    for index in range(1, json.loads((STATE / "nodes.json").read_text())["nodes"] + 1):
        one = Node(index=index)
        target = one.root / "repo"
        run([*world.enter("world"), "sh", "-c", 'rm -rf "$1"/* && cp "$0"/* "$1"', roots.REPOSITORY, target])
        node.inside(one, ["sh", "-ec", "dpkg --install /repo/*.deb"], timeout=600)
        log.info("%s: deployed", one.name)

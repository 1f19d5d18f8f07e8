# SPDX-License-Identifier: BSD-2-Clause
"""One node: an overlay over read-only roots, booted by systemd-nspawn, entered by nsenter."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ganeti_plugin.errors import Error, StateError
from ganeti_plugin.run import Argument, run, spawn
from tests.testbed import cgroup, world
from tests.testbed.layout import CACHE, STATE, TREE, Node, hosts_file

#: linux/loop.h
LOOP_CTL_ADD = 0x4C80
LOOP_CTL_REMOVE = 0x4C81

#: Makes the node's addresses at each boot. The uplink eth1 has none, as snf-network wants it.
NETWORK_SCRIPT = """#!/bin/sh
# The management network, and the uplink to the public one.
ip link set host0 up
ip addr replace {address}/24 dev host0
ip route replace default via 10.77.0.254
[ ! -e /sys/class/net/eth1 ] || ip link set eth1 up
# Ganeti wants this file; the machine's own would let a node reset the machine.
[ ! -e /proc/sysrq-trigger ] || {{ : > /run/sysrq-trigger;
mount --bind /run/sysrq-trigger /proc/sysrq-trigger; }}
"""

NETWORK_UNIT = """[Unit]
Description=Network of the testbed's node
DefaultDependencies=no
Before=network.target network-pre.target ganeti.service ssh.service snf-network.service
After=systemd-sysctl.service systemd-modules-load.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/testbed-network

[Install]
WantedBy=sysinit.target
"""

#: What would configure the node by itself, and timers that would steal processors from what is measured.
MASKED = (
    *("systemd-networkd.service", "systemd-networkd.socket", "systemd-firstboot.service", "systemd-resolved.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer", "e2scrub_all.timer", "fstrim.timer"),
)

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def boot(node: Node, lowers: Sequence[Path], *, nodes: int, binds: Sequence[str] = ()) -> None:
    """Mount the node's root over `lowers` (topmost first) and boot it; returns when systemd has finished starting."""
    upper = node.directory / "upper"
    for directory in (upper, node.directory / "work", node.root):
        directory.mkdir(parents=True, exist_ok=True)
    _configure(upper, node, nodes)
    layers = ":".join(str(lower) for lower in lowers)
    options = f"lowerdir={layers},upperdir={upper},workdir={node.directory / 'work'}"
    run([*world.enter("world"), "mount", "-t", "overlay", "overlay", "-o", options, node.root])
    _start(node, binds)
    _wait_until_running(node)


def _configure(upper: Path, node: Node, nodes: int) -> None:
    etc = upper / "etc"
    (etc / "systemd/system/sysinit.target.wants").mkdir(parents=True, exist_ok=True)
    (upper / "usr/local/sbin").mkdir(parents=True, exist_ok=True)
    (etc / "hostname").write_text(f"{node.name}.testbed\n")
    (etc / "hosts").write_text(hosts_file(nodes))
    (etc / "snf-ganeti/conf.d").mkdir(parents=True, exist_ok=True)
    (etc / "snf-ganeti/conf.d/uplinks.toml").write_text('[network]\nuplinks = { "100" = "eth1" }\n')
    # The machine's own disk is behind all stores, and how full that is says nothing about the tests.
    (etc / "snf-ganeti/conf.d/space.toml").write_text("[archipelago]\nspace_warn = 100\nspace_refuse = 100\n")
    script = upper / "usr/local/sbin/testbed-network"
    script.write_text(NETWORK_SCRIPT.format(address=node.address))
    script.chmod(0o755)
    (etc / "systemd/system/testbed-network.service").write_text(NETWORK_UNIT)
    wanted = etc / "systemd/system/sysinit.target.wants/testbed-network.service"
    wanted.unlink(missing_ok=True)
    wanted.symlink_to("../testbed-network.service")
    for unit in MASKED:
        mask = etc / "systemd/system" / unit
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")


def _start(node: Node, binds: Sequence[str]) -> None:
    make_loops(node)
    devices = [f"--bind={device}" for device in ("/dev/net/tun", "/dev/fuse", "/dev/loop-control")]
    loops = [f"--bind=/dev/loop{number}" for number in node.loops]
    command: list[Argument] = [
        *world.enter("world"),
        *("systemd-nspawn", "--quiet", "-D", node.root, f"--machine={node.name}", f"--hostname={node.name}.testbed"),
        *("--register=no", "--keep-unit", "--capability=all", "--network-bridge=mgmt", "--resolv-conf=off"),
        *(f"--network-veth-extra={node.public_port}:eth1", "--link-journal=no", "--console=pipe"),
        *devices,
        *loops,
        *(f"--bind-ro={source}" for source in (f"{TREE}:/src", f"{CACHE}:/srv/cache")),
        *(f"--bind={bind}" for bind in binds),
        "--boot",
    ]
    wrapper = ["/bin/bash", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', world.leaf(node.name), *command]
    with open(STATE / f"{node.name}.log", "wb") as output:
        child = spawn(wrapper, stdout=output.fileno(), stderr=output.fileno(), new_session=True)
    (STATE / f"{node.name}.pid").write_text(str(_leader(child.pid, node)))
    _wait_for_port(node, there=True)
    run([*world.enter("world"), "ip", "link", "set", node.public_port, "master", "public", "up"])


def _wait_for_port(node: Node, *, there: bool, seconds: float = 20) -> None:
    """systemd-nspawn makes the uplink after it has started systemd; the kernel removes it after the last process."""
    deadline = time.monotonic() + seconds
    show = [*world.enter("world"), "ip", "link", "show", node.public_port]
    while (run(show, allowed=(0, 1)).returncode == 0) is not there:
        if time.monotonic() > deadline:
            raise StateError(message=f"{node.name}'s uplink does not {'come' if there else 'go'}")
        time.sleep(0.05)


def _leader(parent: int, node: Node, seconds: float = 20) -> int:
    """The pid of the node's systemd: the only child of systemd-nspawn that is the first of its pid namespace."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
                status = Path(f"/proc/{child}/status").read_text()
                if "\nNSpid:" in status and status.split("\nNSpid:")[1].split("\n")[0].split()[-1] == "1":
                    return int(child)
        time.sleep(0.05)
    raise StateError(message=f"{node.name} does not boot, see {STATE}/{node.name}.log")


def leader(node: Node) -> int:
    try:
        pid = int((STATE / f"{node.name}.pid").read_text())
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        raise StateError(message=f"{node.name} is not up", hint="see 'testbed status'") from None
    return pid


def enter(node: Node) -> list[str]:
    """The command prefix that runs a program inside of the node, as root."""
    namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wdns=/root")
    return ["nsenter", "--target", str(leader(node)), *namespaces, "--"]


def inside(node: Node, command: Sequence[Argument], *, timeout: float = 300, stdin: bytes | None = None) -> str:
    """Run a program in the node; its stdout."""
    done = run([*enter(node), *command], env=ENVIRONMENT, timeout=timeout, stdin=stdin)
    return done.stdout.decode("utf-8", "replace")


def _wait_until_running(node: Node, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(Error):
            command = [*enter(node), "systemctl", "is-system-running"]
            state = run(command, allowed=(0, 1), timeout=20).stdout.decode().strip()
            if state in ("running", "degraded"):
                return
        time.sleep(0.2)
    raise StateError(message=f"{node.name} did not finish booting, see {STATE}/{node.name}.log")


def kill(node: Node) -> None:
    """End all that runs in the node at once. What the kernel has of it is gone: sockets, mounts, /run."""
    leader(node)
    cgroup.kill(node.name)
    (STATE / f"{node.name}.pid").unlink(missing_ok=True)
    _wait_for_port(node, there=False)
    remove_loops(node)


def boot_again(node: Node, *, binds: Sequence[str] = ()) -> None:
    """Boot a killed node from its files."""
    _start(node, binds)
    _wait_until_running(node)


def power_off(node: Node, seconds: float = 60) -> None:
    """Shut a node down cleanly and unmount its root: its upper layer is then complete."""
    pid = leader(node)
    run([*enter(node), "systemctl", "--no-block", "poweroff"], allowed=(0, 1))
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise StateError(message=f"{node.name} does not shut down, see {STATE}/{node.name}.log")
        time.sleep(0.1)
    (STATE / f"{node.name}.pid").unlink(missing_ok=True)
    run([*world.enter("world"), "umount", node.root])
    remove_loops(node)


def make_loops(node: Node) -> None:
    """Have the node's loop devices; the kernel keeps one list of them for all."""
    with open("/dev/loop-control", "rb") as control:
        for number in node.loops:
            with contextlib.suppress(FileExistsError):
                fcntl.ioctl(control, LOOP_CTL_ADD, number)


def remove_loops(node: Node) -> None:
    """Free the node's loop devices, also those whose backing server is dead."""
    with open("/dev/loop-control", "rb") as control:
        for number in node.loops:
            device = Path(f"/dev/loop{number}")
            if not device.exists():
                continue
            run(["losetup", "--detach", device], allowed=(0, 1))
            with contextlib.suppress(OSError):
                fcntl.ioctl(control, LOOP_CTL_REMOVE, number)


def forget(node: Node) -> None:
    """Remove the node's files."""
    remove_loops(node)
    shutil.rmtree(node.directory, ignore_errors=True)

# SPDX-License-Identifier: BSD-2-Clause
"""A real Ceph for tests: one monitor and one OSD on the loopback interface, as children of the test's process.

Objects live in memory (memstore). Keys are asked for (cephx), and the tests have no more rights than what
docs/archipelago.md asks for. Pools cost a second each, so tests have namespaces of their own in one pool.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

POOL = "test"
USER = "archipelago"

#: The rights that docs/archipelago.md tells an administrator to give.
MON_CAPS = "profile rbd"
OSD_CAPS = "profile rbd pool={pool}"

_CONFIGURATION = """[global]
fsid = {fsid}
mon_host = 127.0.0.1:{port}
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {directory}/keyring
run_dir = {directory}
admin_socket =
log_file = {directory}/$name.log
log_to_stderr = false
mon_data = {directory}/mon
osd_data = {directory}/osd
osd_objectstore = memstore
memstore_device_bytes = {size}
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
mon_osd_down_out_interval = 0
osd_heartbeat_grace = 600
mon_osd_report_timeout = 3600
paxos_propose_interval = 0.05
osd_heartbeat_interval = 1
mon_osd_nearfull_ratio = 0.8
mon_osd_backfillfull_ratio = 0.85
mon_osd_full_ratio = 0.9
mon_data_avail_crit = 1
mon_data_avail_warn = 1
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ceph:
    """A running cluster. `stop` ends it."""

    def __init__(self, directory: Path, size: int = 2 << 30) -> None:
        self.directory = directory
        self.conf = directory / "ceph.conf"
        self.keyring = directory / "keyring"
        self.user_keyring = directory / "user.keyring"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        self._port = free_port()
        fsid = str(uuid.uuid4())
        self.conf.write_text(_CONFIGURATION.format(fsid=fsid, port=self._port, directory=directory, size=size))
        self._make_monitor(fsid)
        self._make_osd()
        self.make_pool(POOL)
        self.make_user(USER, self.user_keyring, MON_CAPS, OSD_CAPS.format(pool=POOL))

    def spec(self, namespace: str, *, pool: str = POOL, user: str = USER, **more: object) -> str:
        """What a setting would say to name a store of this cluster."""
        keyring = self.user_keyring if user == USER else self.keyring
        rest = "".join(f"&{name}={value}" for name, value in more.items())
        return f"rados:{pool}/{namespace}?conf={self.conf}&user={user}&keyring={keyring}{rest}"

    def _run(self, *command: str | Path, timeout: float = 20, tries: int = 1) -> str:
        while True:
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
                if done.returncode == 0:
                    return done.stdout
                problem = done.stderr
            except subprocess.TimeoutExpired:
                # A client that meets a daemon in the moment of its start may wait for ever: ask anew.
                problem = "no answer"
            tries -= 1
            assert tries > 0, f"{command}: {problem}"
            time.sleep(0.2)

    def ceph(self, *words: str, timeout: float = 10, tries: int = 5) -> str:
        return self._run("ceph", "-c", self.conf, "-k", self.keyring, *words, timeout=timeout, tries=tries)

    def _daemon(self, name: str, *command: str | Path) -> None:
        with (self.directory / f"{name}.out").open("ab") as output:
            self._children[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _make_monitor(self, fsid: str) -> None:
        tool: tuple[str | Path, ...] = ("ceph-authtool", self.keyring)
        self._run(*tool, "--create-keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        caps = [word for kind in ("mon", "osd", "mgr", "mds") for word in ("--cap", kind, "allow *")]
        self._run(*tool, "--gen-key", "-n", "client.admin", *caps)
        monmap = self.directory / "monmap"
        address = f"[v2:127.0.0.1:{self._port}]"
        self._run("monmaptool", "--create", "--clobber", "--addv", "a", address, "--fsid", fsid, monmap)
        self._run("ceph-mon", "-c", self.conf, "--mkfs", "-i", "a", "--monmap", monmap, "-k", self.keyring)
        self._daemon("mon", "ceph-mon", "-c", self.conf, "-f", "-i", "a")

    def _make_osd(self) -> None:
        identity = str(uuid.uuid4())
        (self.directory / "osd").mkdir()
        self.ceph("osd", "new", identity)
        key = self.ceph("auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *")
        (self.directory / "osd" / "keyring").write_text(key)
        osd: tuple[str | Path, ...] = ("ceph-osd", "-c", self.conf, "-i", "0", "-k", self.directory / "osd" / "keyring")
        self._run(*osd, "--mkfs", "--osd-uuid", identity)
        self._daemon("osd", *osd, "-f")
        deadline = time.monotonic() + 60
        while json.loads(self.ceph("osd", "stat", "-f", "json"))["num_up_osds"] < 1:
            assert time.monotonic() < deadline, "the OSD does not come up"
            if self._children["osd"].poll() is not None:
                # It ends with "wrong fsid" when it asks the monitor for something before it was told their map.
                self._daemon("osd", *osd, "-f")
            time.sleep(0.1)

    def make_pool(self, name: str) -> None:
        self.ceph("osd", "pool", "create", name, "8", "8")
        self.ceph("osd", "pool", "application", "enable", name, "snf-archipelago")
        rados: tuple[str | Path, ...] = ("rados", "-c", self.conf, "-k", self.keyring, "-p", name)
        self._run(*rados, "put", "probe", "/etc/hostname", timeout=3, tries=15)
        self._run(*rados, "rm", "probe", timeout=3, tries=5)

    def make_user(self, name: str, keyring: Path, mon: str, osd: str) -> None:
        keyring.write_text(self.ceph("auth", "get-or-create", f"client.{name}", "mon", mon, "osd", osd))

    def ports(self) -> list[int]:
        """Of the monitor and of the OSD, where clients reach them."""
        osd = json.loads(self.ceph("osd", "dump", "-f", "json"))["osds"][0]
        found = [address["addr"] for address in osd["public_addrs"]["addrvec"] if address["type"] == "v2"]
        return [self._port, *(int(address.rpartition(":")[2]) for address in found)]

    def suspend(self, daemon: str = "osd") -> None:
        self._children[daemon].send_signal(signal.SIGSTOP)

    def go_on(self, daemon: str = "osd") -> None:
        self._children[daemon].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.wait(10)
        self._children.clear()

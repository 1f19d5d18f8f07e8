# SPDX-License-Identifier: BSD-2-Clause
"""Telling a running guest that its disk has grown, which Ganeti 3.0 does not do.

By QEMU's monitor (QMP), on the socket that Ganeti makes for each KVM instance. Tried with QEMU 7.2: its NBD client
keeps the size that it was told when it connected, and refuses to grow beyond ("Cannot grow NBD nodes"). So our server
makes room for a successor; the next request makes QEMU connect to it, hear the new size and repeat what was under way;
then block_resize tells the guest. A block device has grown by itself already.

Another process, and not just another connection: a request of the old connection that was still under way could come
after one of the new connection, and put back what that had overwritten.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

from extstorage import attached, control, servers
from extstorage.servers import Site
from ganeti_plugin.errors import StateError
from ganeti_plugin.log import debug, info

#: Where Ganeti's KVM hypervisor has its sockets (hv_kvm, _ROOT_DIR).
KVM = Path("/var/run/ganeti/kvm-hypervisor")

#: Seconds for one answer; Ganeti may be talking to the monitor, which listens to one at a time.
TIMEOUT = 60.0

#: Bytes of an answer: the list of a guest's disks is long.
_LIMIT = 1 << 22


class MonitorError(StateError):
    template = "the guest {instance!r} does not see the new size of its disk: {reason}"
    hint = "it will after a restart of the instance"


class Monitor:
    """QEMU's monitor of one instance."""

    def __init__(self, instance: str, path: Path) -> None:
        self._instance = instance
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self.close()
            raise MonitorError(instance=instance, reason=f"its monitor does not answer ({error})") from None
        self._lines = self._socket.makefile("rb")
        self._receive("QMP")
        self.call("qmp_capabilities")

    def close(self) -> None:
        self._socket.close()

    def call(self, command: str, **arguments: object) -> object:
        """The answer to one command."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise MonitorError(instance=self._instance, reason=f"no answer to {command} ({error})") from None
        return self._receive("return")

    def _receive(self, wanted: str) -> object:
        """The next message that is no event."""
        while True:
            try:
                message = json.loads(self._lines.readline(_LIMIT))
            except (OSError, ValueError) as error:
                raise MonitorError(instance=self._instance, reason=f"its monitor fell silent ({error})") from None
            if isinstance(message, dict) and wanted in message:
                return message[wanted]
            if isinstance(message, dict) and "error" in message:
                raise MonitorError(instance=self._instance, reason=f"QEMU says: {message['error'].get('desc')}")


def qemu_id(uuid: str) -> str:
    """What Ganeti calls the disk of that UUID in QEMU: the first three groups of it."""
    return "disk-" + "-".join(uuid.split("-")[:3])


def show_size(site: Site, instance: str, uuid: str, volume: str) -> bool:
    """Have the running guest see how large its disk is; answers whether something was to be done."""
    monitor_path = KVM / "ctrl" / f"{instance}.qmp"
    if not monitor_path.is_socket() or not servers.is_running(site, volume):
        debug("%s does not run on this node", instance)
        return False
    size = int(str(control.call(site.directory(volume), volume, "status")["size"]))
    monitor = Monitor(instance, monitor_path)
    try:
        return _resize(site, monitor, instance, qemu_id(uuid), volume, size)
    finally:
        monitor.close()


def _resize(site: Site, monitor: Monitor, instance: str, device: str, volume: str, size: int) -> bool:
    seen, is_nbd = _as_qemu_sees_it(monitor, device)
    if seen < 0 or seen >= size:
        return False
    if is_nbd:
        attached.restart(site, volume)
        command = f'qemu-io {device} "read 0 512"'
        monitor.call("human-monitor-command", **{"command-line": command})
    monitor.call("block_resize", device=device, size=size)
    info("%s: the guest %s sees %d bytes, was %d", volume, instance, size, seen)
    return True


def _as_qemu_sees_it(monitor: Monitor, device: str) -> tuple[int, bool]:
    """The size of a drive, or -1 when there is no such drive, and whether it is QEMU's own NBD client."""
    drives = monitor.call("query-block")
    for drive in drives if isinstance(drives, list) else []:
        inserted = drive.get("inserted") if isinstance(drive, dict) else None
        if isinstance(inserted, Mapping) and drive.get("device") == device:
            return int(inserted["image"]["virtual-size"]), str(inserted["image"]["filename"]).startswith("nbd")
    return -1, False

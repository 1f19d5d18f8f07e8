# SPDX-License-Identifier: BSD-2-Clause
"""The cage of a program that touches hostile bytes: a transient systemd unit, or a plain fallback without systemd.

The unit has a user of its own that exists only meanwhile, no network, no capability, a list of allowed system calls,
limits of memory, tasks, time and processor, and a root file system that holds /usr and what is named, read-only
(threats V01, V02, V05, V06). Where systemd is not process 1 the same launcher runs as nobody without capabilities, in
network and IPC namespaces of its own, with resource limits, but sees the node's files as nobody does: snf-image(8).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ganeti_plugin.settings import Accel

LAUNCHER = Path(__file__).resolve().parent / "launcher.py"

#: Where the sandbox shows the launcher, and the folder that the caller names.
_LAUNCHER_INSIDE = Path("/sandbox/launcher.py")
_FILES_INSIDE = Path("/sandbox/files")

#: The empty root file system of the units; all of them share it, and none can write to it.
ROOT = Path("/run/snf-image/root")

#: Seconds between the deadline of ours and systemd's own, which ends the unit whatever became of us.
_GRACE = 15


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one sandbox: MiB, seconds, percent of one processor."""

    memory: int
    seconds: int
    tasks: int = 64
    processor: int = 150


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """How to start something confined. `files` is a folder that the program may read."""

    name: str
    limits: Limits
    files: Path | None = None
    accel: Accel = Accel.TCG
    tag: str = field(default_factory=lambda: secrets.token_hex(6))

    @property
    def unit(self) -> str:
        return f"snf-image-{self.name}-{self.tag}.service"

    def files_inside(self) -> Path:
        """The folder as the confined program sees it."""
        assert self.files is not None
        return _FILES_INSIDE if is_systemd() else self.files


def is_systemd() -> bool:
    """Whether systemd is process 1 (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def command(sandbox: Sandbox) -> list[str]:
    """Starts the launcher, confined; its standard input is the control socket."""
    return _unit_command(sandbox) if is_systemd() else _plain_command(sandbox)


def _unit_command(sandbox: Sandbox) -> list[str]:
    properties = [f"--property={name}={value}" for name, value in _PROPERTIES.items()]
    properties += [f"--property={line}" for line in _variable_properties(sandbox)]
    return [
        *("/usr/bin/systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--service-type=exec"),
        f"--unit={sandbox.unit}",
        f"--description=Confined {sandbox.name} of snf-image",
        *properties,
        *("/usr/bin/python3", "-I", "-S", str(_LAUNCHER_INSIDE)),
    ]


def _root() -> Path:
    """An empty root file system for the unit: mount points, and the links that programs expect beside /usr."""
    root = ROOT
    for name in (".", "usr", "etc", "proc", "sys", "dev", "run", "tmp", "var", "var/tmp", "sandbox"):
        (root / name).mkdir(parents=True, exist_ok=True)
        # The unit's user must come through, whatever the caller's umask: Ganeti 3.1's node daemon has 077.
        (root / name).chmod(0o755)
    for name in ("bin", "sbin", "lib", "lib64"):
        with contextlib.suppress(FileExistsError):
            (root / name).symlink_to(f"usr/{name}")
    return root


def _variable_properties(sandbox: Sandbox) -> list[str]:
    limits = sandbox.limits
    lines = [
        f"MemoryMax={limits.memory}M",
        f"TasksMax={limits.tasks}",
        f"RuntimeMaxSec={limits.seconds + _GRACE}",
        f"CPUQuota={limits.processor}%",
        f"RootDirectory={_root()}",
        f"BindReadOnlyPaths={LAUNCHER}:{_LAUNCHER_INSIDE}",
    ]
    if sandbox.files is not None:
        lines.append(f"BindReadOnlyPaths={sandbox.files}:{_FILES_INSIDE}")
    if sandbox.accel is Accel.KVM:
        lines += ["DeviceAllow=/dev/kvm rw", "BindPaths=/dev/kvm", "SupplementaryGroups=kvm"]
    return lines


_PROPERTIES: Mapping[str, str] = {
    "DynamicUser": "yes",
    "PrivateNetwork": "yes",
    "PrivateIPC": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "MountAPIVFS": "yes",
    # Nowhere to write, so that nothing of the node can be filled.
    "ReadOnlyPaths": "+/tmp +/var/tmp +/run -+/dev/shm -+/dev/mqueue",
    "BindReadOnlyPaths": "/usr -/etc/ld.so.cache -/etc/alternatives",
    "InaccessiblePaths": "+/sys",
    "ProtectProc": "invisible",
    "ProcSubset": "pid",
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    "RestrictAddressFamilies": "AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service seccomp",
    "SystemCallErrorNumber": "EPERM",
    "UMask": "0077",
    "LimitCORE": "0",
    "LimitNOFILE": "1024",
    "MemorySwapMax": "0",
    "OOMPolicy": "kill",
    "KillMode": "control-group",
    "TimeoutStopSec": "2",
}


def _plain_command(sandbox: Sandbox) -> list[str]:
    """No parent-death signal: it would kill the launcher before that can kill its child. The leash ends both."""
    limits = sandbox.limits
    groups = ["--groups", "kvm"] if sandbox.accel is Accel.KVM else ["--clear-groups"]
    return [
        *("/usr/bin/unshare", "--net", "--ipc", "--"),
        *("/usr/bin/prlimit", "--core=0", "--nofile=1024", f"--cpu={limits.seconds * 2}"),
        f"--as={(limits.memory + 4096) << 20}",
        *("/usr/bin/setpriv", "--reuid=nobody", "--regid=nogroup", *groups),
        *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"),
        *("/usr/bin/python3", "-I", "-S", str(LAUNCHER)),
    ]

# SPDX-License-Identifier: BSD-2-Clause
"""Root file systems: a fresh Debian as base, and on it a layer in which apt has installed snf-ganeti.

Both are cached. The base has what any node has before Ganeti (kernel, systemd, sshd); the layer is made in a booted
node, by `apt-get install snf-ganeti`, as an administrator would, and made anew whenever the packages change.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.errors import StateError
from ganeti_plugin.files import locked
from ganeti_plugin.run import run
from tests.testbed import ceph
from tests.testbed.layout import CACHE, TREE

#: Before Ganeti: what every Debian server has. The small kernel, since nothing here boots it but helper VMs.
BASE = (
    *("systemd", "systemd-sysv", "dbus", "udev", "openssh-server", "iproute2", "iputils-ping", "procps", "kmod"),
    *("ca-certificates", "linux-image-cloud-amd64", "initramfs-tools", "zstd", "python3"),
)

#: For the tests that run inside of nodes; they also start a Ceph (tests/real/extstorage/ceph.py).
TOOLS = (
    *("python3-pytest", "python3-pytest-timeout", "python3-hypothesis", "python3-libnbd", "python3-scapy"),
    *("qemu-utils", "qemu-system-x86", "busybox-static", "tcpdump", "fio", "socat", "e2fsprogs", "fdisk", "strace"),
)

#: What a release has in packages of its own. QEMU 8.0 removed its own virtiofsd (docs/about/removed-features).
TOOLS_OF = {"bookworm": (), "trixie": ("virtiofsd",)}

#: Seconds to wait for another testbed that makes the same base or layer.
PATIENCE = 900.0

REPOSITORY = TREE / "build/repo"


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What is installed beside our packages, on a release."""

    release: str
    tools: bool
    ceph: bool

    def packages(self) -> tuple[str, ...]:
        tools = (*TOOLS, *TOOLS_OF[self.release]) if self.tools else ()
        return (*tools, *(ceph.PACKAGES if self.tools or self.ceph else ()))

    def suffix(self) -> str:
        """Of what has the same packages, and so is made once."""
        return "-tools" if self.tools else "-ceph" if self.ceph else ""


@dataclass(frozen=True, kw_only=True)
class Roots:
    """The roots of one release."""

    release: str

    @property
    def base(self) -> Path:
        return CACHE / "testbed" / f"base-{self.release}"

    @property
    def archives(self) -> Path:
        """apt's downloaded packages, so that a second run needs no network."""
        return CACHE / "testbed" / f"archives-{self.release}"

    @property
    def lock(self) -> Path:
        """Held by whoever makes the base or a layer."""
        return self.archives.with_suffix(".lock")

    def layer(self, extra: Extra) -> Path:
        return CACHE / "testbed" / f"layer-{self.release}-{packages_digest(extra)}{extra.suffix()}"


def packages_digest(extra: Extra) -> str:
    """Names one state of our packages, and what is installed beside them."""
    index = REPOSITORY / "Packages"
    if not index.exists():
        raise StateError(message=f"{REPOSITORY} has no packages", hint="run './run repo' first")
    return hashlib.sha256(index.read_bytes() + repr(extra.packages()).encode()).hexdigest()[:16]


def need_base(roots: Roots) -> None:
    """Make the base root unless it is there, or another testbed makes it; mmdebstrap takes about a minute."""
    roots.archives.mkdir(parents=True, exist_ok=True)
    with locked(roots.lock, timeout=PATIENCE):
        _need_base(roots)


def _need_base(roots: Roots) -> None:
    wanted = hashlib.sha256(" ".join(BASE).encode()).hexdigest()
    mark = roots.base / ".testbed"
    if mark.exists() and mark.read_text() == wanted:
        return
    log.info("making a fresh Debian %s root for nodes (a minute or two)", roots.release)
    new = roots.base.with_name(roots.base.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    include = ",".join(BASE)
    # The lists stay, so that apt can install from its archives without a network.
    keep = "--skip=cleanup/apt/lists"
    run(["mmdebstrap", "--variant=minbase", keep, f"--include={include}", roots.release, new], timeout=1200)
    (new / "etc/apt/apt.conf.d/90testbed").write_text(
        'APT::Install-Recommends "false";\nAcquire::Languages "none";\nDir::Cache::archives "/archives";\n'
        'APT::Keep-Downloaded-Packages "true";\nBinary::apt::APT::Keep-Downloaded-Packages "true";\n'
    )
    (new / "archives").mkdir(exist_ok=True)
    (new / "repo").mkdir(exist_ok=True)
    (new / "etc/apt/sources.list.d/snf-ganeti.list").write_text("deb [trusted=yes] copy:/repo ./\n")
    for name in ("etc/machine-id", "var/lib/dbus/machine-id"):
        (new / name).unlink(missing_ok=True)
    (new / ".testbed").write_text(wanted)
    shutil.rmtree(roots.base, ignore_errors=True)
    new.rename(roots.base)


def download(roots: Roots, packages: tuple[str, ...]) -> None:
    """Fetch what apt would need for `packages`; only what is missing comes from the network."""
    script = (
        "root=$1 archives=$2 repo=$3; shift 3; "
        'mount --bind "$root" "$root"; mount --bind "$archives" "$root/archives"; mount --bind "$repo" "$root/repo"; '
        'mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"; '
        '[ ! -e /etc/resolv.conf ] || { touch "$root/etc/resolv.conf"; '
        'mount --bind "$(realpath /etc/resolv.conf)" "$root/etc/resolv.conf"; }; '
        # What apt writes about our repository must not stay in the base.
        'mount -t tmpfs tmpfs "$root/tmp"; cp -a "$root/var/lib/apt/lists" "$root/tmp/lists"; '
        'set -- chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive '
        'apt-get -qq -o Dir::State::lists=/tmp/lists "$@"; '
        '"${@:1:$#-WORDS}" update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/snf-ganeti.list '
        "-o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0; "
        '"$@"'
    )
    words = ["install", "--download-only", "-y", *packages]
    script = script.replace("WORDS", str(len(words)))
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-euc", script, "bash"]
    run([*command, roots.base, roots.archives, REPOSITORY, *words], timeout=1200)

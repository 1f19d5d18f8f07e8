# SPDX-License-Identifier: BSD-2-Clause
"""The real guest: a Debian from the distribution's packages, trimmed until it boots fast without KVM.

The image carries its author's identity on purpose (SSH host keys, machine id, host name): a clone that still shows it
was not customized, and the demo notices.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from pathlib import Path

from ganeti_plugin.errors import StateError
from ganeti_plugin.run import spawn
from tests.guest.disk import MIB, Layout, make

#: Besides the essential packages. busybox and lz4 are for the initramfs; acpid answers the power button, by which
#: Ganeti stops an instance (logind would need a message bus).
PACKAGES = (
    "systemd", "systemd-sysv", "udev", "kmod", "iproute2", "iputils-ping", "ifupdown", "openssh-server",
    "netcat-openbsd", "procps", "linux-image-cloud-amd64", "initramfs-tools", "busybox-static", "lz4", "e2fsprogs",
    "acpid",
)  # fmt: skip

#: What only costs time in a guest that lives for minutes.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "dpkg-db-backup.timer", "man-db.timer", "systemd-tmpfiles-clean.timer", "systemd-binfmt.service",
    "systemd-journal-flush.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
    "systemd-pstore.service", "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "getty@tty1.service",
    "modprobe@.service", "systemd-modules-load.service", "kmod-static-nodes.service", "ifupdown-pre.service",
    "systemd-udev-settle.service", "systemd-ask-password-wall.path", "systemd-ask-password-console.path",
)  # fmt: skip

#: Kernel arguments. ethN is the name that snf-image's ifupdown driver writes.
APPEND = (
    "console=ttyS0,115200n8 net.ifnames=0 quiet loglevel=4 mitigations=off random.trust_cpu=on nowatchdog "
    "audit=0 selinux=0 apparmor=0 fsck.mode=skip systemd.show_status=0"
)

FILES = {
    "etc/initramfs-tools/conf.d/snf": "MODULES=list\nBUSYBOX=auto\nCOMPRESS=lz4\nRESUME=none\nFSTYPE=ext4\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\nvirtio_net\next4\n",
    "etc/kernel-img.conf": "do_symlinks = yes\nlink_in_boot = no\n",
    "etc/apt/apt.conf.d/99guest": 'APT::Install-Recommends "false";\n',
    "etc/hostname": "image-author\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 image-author\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\n",
    "etc/systemd/journald.conf.d/guest.conf": "[Journal]\nStorage=volatile\nRuntimeMaxUse=8M\nAudit=no\n",
    "etc/systemd/system.conf.d/guest.conf": "[Manager]\nDefaultTimeoutStopSec=10s\nDefaultTimeoutStartSec=60s\n",
    "etc/acpi/events/power": "event=button/power.*\naction=/sbin/poweroff\n",
    "etc/resolv.conf": "",
}


def build(image: Path, tree: Path, scratch: Path) -> None:
    """Make `image` of a bootstrapped `tree`."""
    remove_caches(tree)
    identity = uuid.uuid4()
    root = uuid.uuid4()
    (tree / "etc/machine-id").write_text(f"{identity.hex}\n")
    (tree / "etc/fstab").write_text(f"UUID={root} / ext4 errors=remount-ro,noatime 0 0\n")
    make(image, tree, Layout(size=900 * MIB, label="guest-root", uuid=root, append=APPEND), scratch)


def bootstrap(tree: Path, release: str, archives: Path | None) -> None:
    """Run mmdebstrap, its progress on stderr; `archives` is a folder of .deb files to use and to add to."""
    command: list[str | Path] = [
        "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        '--aptopt=Acquire::Retries "3"', '--aptopt=Apt::Install-Recommends "false"',
        # Documentation weighs more than the rest of the file system.
        "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    ]  # fmt: skip
    if archives is not None:
        command += [
            "--skip=download/empty",
            '--setup-hook=mkdir -p "$1/var/cache/apt/archives"',
            f"--setup-hook=sync-in {archives} /var/cache/apt/archives",
            f"--customize-hook=sync-out /var/cache/apt/archives {archives}",
        ]
    seed = tree.with_name("seed")
    for name, text in FILES.items():
        path = seed / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # Before the kernel is installed: its first initramfs is already the trimmed one.
    command.append(f"--essential-hook=sync-in {seed} /")
    command += [f'--customize-hook=chroot "$1" systemctl mask {" ".join(MASKED)} >/dev/null 2>&1']
    command += ['--customize-hook=rm -f "$1/etc/resolv.conf" && touch "$1/etc/resolv.conf"']
    command += [f"--customize-hook=sync-in {seed} /", release, tree]
    process = spawn(command, stdout=subprocess.DEVNULL, env={"TMPDIR": str(tree.parent)})
    try:
        status = process.wait(timeout=1200)
    except subprocess.TimeoutExpired:
        process.kill()
        raise StateError(message="mmdebstrap did not end within 20 minutes", hint="is the mirror slow?") from None
    if status != 0:
        raise StateError(message=f"mmdebstrap failed (status {status})", hint="its messages stand above")


def remove_caches(tree: Path) -> None:
    """What apt can fetch again must not fill the image."""
    for pattern in ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*_*"):
        for path in tree.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

# SPDX-License-Identifier: BSD-2-Clause
"""The helper VM: all Linux tasks on a real Debian image, beside a bare boot of its kernel and beside virt-customize."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.run import run
from tests.bench.add import KEY
from tests.bench.figures import Figure
from tests.bench.place import CACHE, Job, timed
from tests.guest.small import cpio
from tests.place import ROOT, done

#: The image as node and host see it.
IMAGE_IN_NODE = "/srv/cache/guest/debian-12.raw"
IMAGE = CACHE / "guest/debian-12.raw"

SCRATCH = "/var/tmp/bench-disk.raw"
CREATE = "/usr/share/ganeti/os/snf-image/create"
KERNEL = "/var/lib/snf-image/helper/kernel"

#: The root file system that has the peer.
GUESTFS_ROOT = CACHE / "bench-root"
GUESTFS_PACKAGES = "libguestfs-tools,guestfs-tools,linux-image-cloud-amd64,qemu-system-x86,qemu-utils,python3"

INIT = "#!/bin/busybox sh\n/bin/busybox poweroff -f\n"


def os_environment(device: str) -> dict[str, str]:
    """What Ganeti sets for the script `create` of an OS definition."""
    return {
        "OS_API_VERSION": "20",
        "OS_NAME": "snf-image",
        "OS_VARIANT": "default",
        "INSTANCE_NAME": "bench.test",
        "INSTANCE_OS": "snf-image+default",
        "HYPERVISOR": "kvm",
        "DEBUG_LEVEL": "0",
        "DISK_COUNT": "1",
        "DISK_0_PATH": device,
        "DISK_0_ACCESS": "rw",
        "DISK_0_SIZE": "2048",
        "DISK_0_UUID": "00000000-0000-4000-8000-000000000001",
        "DISK_0_BACKEND_TYPE": "block",
        "NIC_COUNT": "1",
        "NIC_0_MAC": "aa:00:00:be:9c:02",
        "NIC_0_MODE": "routed",
        "NIC_0_LINK": "100",
        "NIC_0_IP": "198.51.100.78",
        "NIC_0_NETWORK_NAME": "public",
        "NIC_0_NETWORK_SUBNET": "198.51.100.0/24",
        "NIC_0_NETWORK_GATEWAY": "198.51.100.1",
        "NIC_0_NETWORK_SUBNET6": "2001:db8:1::/64",
        "NIC_0_NETWORK_GATEWAY6": "2001:db8:1::1",
        "OSP_IMG_ID": "null",
        "OSP_IMG_FORMAT": "diskdump",
        "OSP_IMG_PASSWD": "bench",
        "OSP_AUTH_KEYS": KEY,
        "OSP_IMG_PROPERTIES": '{"OSFAMILY":"linux"}',
    }


def free_loop() -> str:
    """A loop device of the node that nobody uses."""
    find = "for d in /dev/loop[0-9]*; do losetup $d >/dev/null 2>&1 || { echo $d; exit; }; done; exit 1"
    return done("sh", "-c", find)


def helper_job() -> Job:
    """The OS definition with a disk that is already filled: nothing but the helper VM and what surrounds it."""
    device = free_loop()
    prepare = (
        f"losetup -d {device} 2>/dev/null || true; cp --sparse=always {IMAGE_IN_NODE} {SCRATCH}; "
        f"truncate -s 2G {SCRATCH}; losetup {device} {SCRATCH}"
    )
    cleanup = f"losetup -d {device}; rm -f {SCRATCH}"
    return Job(name="helper", command=[CREATE], environment=os_environment(device), prepare=prepare, cleanup=cleanup)


def busybox_job() -> Job:
    """The helper's kernel with an initrd whose only program switches the machine off."""
    folder = CACHE / "bench"
    folder.mkdir(exist_ok=True)
    binary = folder / "busybox"
    small = CACHE / "guest/small.raw"
    run(["debugfs", "-R", f"dump /bin/busybox {binary}", f"{small}?offset=1048576"])
    entries = [
        ("bin", 0o040755, b""),
        ("bin/busybox", 0o100755, binary.read_bytes()),
        ("init", 0o100755, INIT.encode()),
    ]
    (folder / "busybox.initrd").write_bytes(gzip.compress(b"".join(cpio(entries)), 1))
    command = [
        *("qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot"),
        *("-serial", "file:/dev/null", "-kernel", KERNEL, "-initrd", "/srv/cache/bench/busybox.initrd"),
        *("-append", "console=ttyS0 quiet"),
    ]
    return Job(name="busybox boot", command=command)


def guestfs_prefix() -> list[str | Path]:
    """Enter a root with libguestfs, made once; its appliance is made by a first, untimed run."""
    if not (GUESTFS_ROOT / ".ready").exists():
        log.info("making a root file system with libguestfs")
        shutil.rmtree(GUESTFS_ROOT, ignore_errors=True)
        run(["mmdebstrap", "--quiet", "--variant=minbase", '--aptopt=Apt::Install-Recommends "false"',
             f"--include={GUESTFS_PACKAGES}", "bookworm", GUESTFS_ROOT], timeout=1200)  # fmt: skip
        (GUESTFS_ROOT / ".ready").touch()
    script = (
        'mount --bind "$0" "$0"; mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; '
        'mount -t tmpfs tmpfs "$0/run"; '
        'mkdir -p "$0/src" "$0/srv/cache"; mount --bind -o ro "$1" "$0/src"; mount --bind -o ro "$2" "$0/srv/cache"; '
        'shift 2; exec chroot "$0" /usr/bin/env LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg "$@"'
    )
    inside: list[str | Path] = ["bash", "-ec", script, GUESTFS_ROOT, ROOT, CACHE]
    return ["unshare", "--mount", "--net", "--propagation", "private", *inside]


def virt_customize_job() -> Job:
    command = [
        *("virt-customize", "-q", "-a", SCRATCH, "--hostname", "bench.test"),
        *("--root-password", "password:bench", "--ssh-inject", f"root:string:{KEY}"),
    ]
    prepare = f"cp --sparse=always {IMAGE_IN_NODE} {SCRATCH}"
    return Job(name="virt-customize", command=command, prepare=prepare, cleanup=f"rm -f {SCRATCH}")


def measure(rounds: int) -> list[Figure]:
    run([ROOT / "tests/guest/build-image"], timeout=1500)
    ours, bare = timed([helper_job(), busybox_job()], rounds=rounds)
    prefix = guestfs_prefix()
    if not any(GUESTFS_ROOT.glob("var/tmp/.guestfs-*/appliance.d")):
        log.info("  (first, untimed run of libguestfs: it makes its appliance)")
        run([*prefix, "guestfish", "-a", "/dev/null", "run"], timeout=600)
    (theirs,) = timed([virt_customize_job()], rounds=rounds, prefix=prefix)
    bare_name = "busybox boot of the same kernel"
    return [
        Figure(
            name="helper VM, all Linux tasks", value=ours, peer=bare_name, peer_value=bare, most_ratio=2.2,
            runs=rounds,
        ),
        Figure(
            name="helper VM, all Linux tasks (2)", value=ours, peer="virt-customize: name, password, key",
            peer_value=theirs, least_speedup=5, runs=rounds,
        ),
    ]  # fmt: skip

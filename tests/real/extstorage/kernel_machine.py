# SPDX-License-Identifier: BSD-2-Clause
"""A machine with the distribution's kernel, for what the host's kernel lacks: QEMU boots it from the node's own root.

Nothing is built: virtiofsd shows the node's root file system, an overlay in the machine's memory takes what is written,
and systemd is PID 1 as on a real node, with a few units only. One script runs in it; its output is its console's.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from snf_image import builder, cpio, kernel
from snf_image.machine import QEMU

VIRTIOFSD = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))
BUSYBOX = Path("/bin/busybox")

#: What the first program needs before the distribution's own modules are in sight, and what units would load that are
#: not wanted: without kmod-static-nodes.service there is no /dev/loop-control, by which it gets loop devices.
MODULES: dict[str, tuple[str, ...]] = {"boot": ("virtio_pci", "virtiofs", "overlay", "loop", "virtio_net")}

#: A boot spends most of its time on what this machine has no use for.
UNWANTED = (
    *("systemd-udev-trigger.service", "systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service"),
    *("systemd-journal-flush.service", "systemd-sysctl.service", "systemd-sysusers.service", "systemd-binfmt.service"),
    *("systemd-random-seed.service", "systemd-modules-load.service", "systemd-update-utmp.service", "ldconfig.service"),
    *("systemd-machine-id-commit.service", "systemd-timesyncd.service", "systemd-remount-fs.service"),
    *("systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-update-done.service"),
    *("systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-pstore.service"),
    *("systemd-sysext.service", "systemd-network-generator.service", "nftables.service"),
    *("lvm2-monitor.service", "lvm2-lvmpolld.socket", "blk-availability.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "proc-sys-fs-binfmt_misc.automount"),
    *("kmod-static-nodes.service", "networking.service", "ifupdown-pre.service", "apparmor.service"),
)
GENERATORS = Path("/lib/systemd/system-generators")

MEMORY = "1024M"
#: Seconds; alone on two processors it takes about sixty.
DEADLINE = 480.0
SCRIPT = "/root/script.py"

INIT = """#!/bin/busybox sh
busybox mkdir -p /proc /sys /new /lower /upper
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
for module in {modules}; do busybox insmod /modules/$module; done
busybox mount -t virtiofs -o ro root /lower
busybox mount -t tmpfs -o size=700m upper /upper
busybox mkdir /upper/files /upper/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new
busybox cp -a /files/. /new/
busybox umount /proc /sys
exec busybox switch_root /new /lib/systemd/systemd
"""

TARGET = """[Unit]
Requires=sysinit.target dbus.socket script.service
After=sysinit.target
AllowIsolate=yes
"""

SERVICE = f"""[Unit]
After=sysinit.target dbus.socket
OnFailure=poweroff.target
OnSuccess=poweroff.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -u {SCRIPT}
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
"""

ARGUMENTS = (
    *("console=ttyS0", "quiet", "panic=-1", "mitigations=off", "systemd.unit=script.target", "systemd.show_status=0"),
    *("systemd.log_level=warning", "systemd.log_target=kmsg", "tsc=reliable", "net.ifnames=0"),
)


def initrd(chosen: kernel.Kernel, files: dict[str, bytes]) -> bytes:
    """Busybox, the modules for the root, and what shall be written over it."""
    listed = kernel.plan_modules((chosen.modules / "modules.dep").read_text(), MODULES)["boot"]
    masked = [f"/files/etc/systemd/system/{unit}" for unit in UNWANTED]
    masked += [f"/files/etc/systemd/system-generators/{path.name}" for path in GENERATORS.iterdir()]
    entries = {path: cpio.link(path, "/dev/null") for path in masked}
    entries |= {
        "/bin/busybox": cpio.file("/bin/busybox", BUSYBOX.read_bytes(), 0o755),
        "/init": cpio.file("/init", INIT.format(modules=" ".join(map(kernel.module_name, listed))).encode(), 0o755),
        "/dev/console": cpio.character_device("/dev/console", 5, 1),
    }
    for path in listed:
        place = f"/modules/{kernel.module_name(path)}"
        entries[place] = cpio.file(place, kernel.module_data(chosen, path))
    for path, data in files.items():
        entries[f"/files{path}"] = cpio.file(f"/files{path}", data, 0o644)
    return cpio.archive(entries)


def run(script: str, *, files: dict[str, bytes] | None = None) -> Iterator[str]:
    """Boot the machine, run the Python script in it as root, and give the lines of its console until it is off."""
    chosen = kernel.best()
    given = {
        SCRIPT: script.encode(),
        "/etc/systemd/system/script.target": TARGET.encode(),
        "/etc/systemd/system/script.service": SERVICE.encode(),
        "/etc/systemd/journald.conf.d/machine.conf": b"[Journal]\nStorage=volatile\n",
        **(files or {}),
    }
    with tempfile.TemporaryDirectory(prefix="kernel-machine-", dir="/run") as folder:
        place = Path(folder)
        (place / "kernel").write_bytes(kernel.bare_image(chosen.image.read_bytes()))
        (place / "initrd").write_bytes(initrd(chosen, given))
        (place / "root").mkdir()
        with subprocess.Popen(_virtiofsd(place), stderr=subprocess.DEVNULL) as files_server:
            try:
                _await(place / "fs.sock")
                yield from _console(place)
            finally:
                files_server.kill()


def _virtiofsd(place: Path) -> list[str]:
    """The node's root without what is mounted in it. Its mount namespace, and so the mount, ends with it."""
    program = next(path for path in VIRTIOFSD if path.exists())
    options = "sandbox=chroot,cache=always,no_writeback,xattr"
    share = f"--socket-path={place}/fs.sock -o source={place}/root,{options}"
    words = f"mount --bind -o ro / {place}/root && exec {program} {share}"
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", words]


def _await(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def _console(place: Path) -> Iterator[str]:
    command = [
        *(str(QEMU), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *(
            "-machine",
            "pc,usb=off,vmport=off,graphics=off,memory-backend=memory",
            "-accel",
            "tcg,thread=multi,tb-size=256",
        ),
        *("-cpu", builder.EMULATED_CPU, "-smp", "2", "-m", MEMORY),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),
        *(
            "-chardev",
            f"socket,id=fs,path={place}/fs.sock",
            "-device",
            "vhost-user-fs-pci,chardev=fs,tag=root,queue-size=1024",
        ),
        # The programs on the node's loopback interface are behind 10.0.2.2 (QEMU's user network).
        *("-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
        *("-kernel", f"{place}/kernel", "-initrd", f"{place}/initrd", "-append", " ".join(ARGUMENTS)),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
    ]
    deadline = time.monotonic() + DEADLINE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield line.decode("utf-8", "replace").rstrip()
                assert time.monotonic() < deadline, "the machine takes too long"
        finally:
            process.kill()

#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Runs the helper VM without the host side: a bare QEMU, one request, its replies, and a look at the disk afterwards.

As a program it builds the helper, makes a Debian-like image, customizes it and prints what took how long:

    tests/real/snf_image/helper_vm.py [--runs N] [--baseline] [--console]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from snf_image import builder, cpio, protocol

QEMU = "/usr/bin/qemu-system-x86_64"
CPU = os.environ.get("HELPER_CPU", builder.EMULATED_CPU)
DEADLINE = 90.0
SECTOR = 512
MIB = 1 << 20

PASSWD = (
    "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/usr/sbin:/usr/sbin/nologin\nuser:x:1000:1000::/home/user:/bin/sh\n"
)
FILES: dict[str, tuple[str, int]] = {
    "etc/passwd": (PASSWD, 0o644),
    "etc/shadow": ("root:!:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nuser:*:19000:0:99999:7:::", 0o640),
    "etc/group": ("root:x:0:\nuser:x:1000:\n", 0o644),
    "etc/hostname": ("author\n", 0o644),
    "etc/hosts": ("127.0.0.1\tlocalhost\n127.0.1.1\tauthor\n", 0o644),
    "etc/fstab": ("LABEL=root / ext4 errors=remount-ro 0 1\n", 0o644),
    "etc/machine-id": ("0123456789abcdef0123456789abcdef\n", 0o444),
    "etc/debian_version": ("12.5\n", 0o644),
    "etc/network/interfaces": ("auto lo\niface lo inet loopback\n", 0o644),
    "etc/ssh/sshd_config": ("PermitRootLogin yes\n", 0o644),
    "etc/ssh/ssh_host_rsa_key": ("the author's\n", 0o600),
    "etc/ssh/ssh_host_rsa_key.pub": ("the author's\n", 0o644),
    "root/.profile": ("", 0o644),
    "home/user/.profile": ("", 0o644),
}


def make_tree(folder: Path, extra: dict[str, tuple[str, int]] | None = None) -> Path:
    """A directory with what the tasks look at in a Debian system."""
    for name, (text, mode) in {**FILES, **(extra or {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    (folder / "root").chmod(0o700)
    return folder


def make_disk(
    image: Path, tree: Path, *, label: str = "dos", size: int = 256 * MIB, disk: int = 1024 * MIB, name: str = "root"
) -> Path:
    """A disk of `disk` bytes that begins with an image of `size` bytes: one ext4 partition, `name`, with `tree`."""
    with image.open("wb") as stream:
        stream.truncate(size)
    script = f"label: {label}\nstart=2048, type={'83' if label == 'dos' else 'linux'}\n"
    subprocess.run(["sfdisk", "-q", image], input=script.encode(), check=True)
    blocks = (size - MIB - (MIB if label == "gpt" else 0)) // 4096
    command = ["mkfs.ext4", "-q", "-F", "-L", name, "-b", "4096", "-d", str(tree), "-E", f"offset={MIB}"]
    subprocess.run([*command, str(image), str(blocks)], check=True)
    os.truncate(image, disk)
    return image


def request(**changes: object) -> protocol.Request:
    nic = protocol.Nic(
        index=0,
        mac="aa:00:00:12:34:56",
        mode="routed",
        ip="198.51.100.7",
        network_name="public",
        subnet="198.51.100.0/24",
        gateway="198.51.100.1",
        subnet6="2001:db8:1::/64",
        gateway6="2001:db8:1::1",
    )
    plain = protocol.Request(
        nonce=os.urandom(16).hex(),
        entropy=os.urandom(64).hex(),
        time=int(time.time()),
        hostname="web1.example.org",
        disks=(protocol.Disk(index=0, serial="snf-disk-0"),),
        nics=(nic,),
        password="correct horse",
        auth_keys=("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample demo",),
        properties={"OSFAMILY": "linux"},
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type] # the tests' own keyword arguments


@dataclasses.dataclass
class Run:
    """What one run gave: seconds, replies, the console's text, QEMU's exit code."""

    replies: list[protocol.Reply]
    times: list[float]
    seconds: float
    console: str
    code: int

    @property
    def result(self) -> protocol.Result:
        last = self.replies[-1]
        assert isinstance(last, protocol.Result), self.console[-3000:]
        return last

    @property
    def warnings(self) -> list[str]:
        return [reply.message for reply in self.replies if isinstance(reply, protocol.TaskWarning)]


def machine(directory: Path, arguments: str) -> list[str]:
    """The machine, without disks; as the host side's, %fd0% is the channel and %fd1% the console."""
    return [
        QEMU, "-accel", "tcg", "-cpu", CPU, "-machine", "pc", "-m", "512", "-nodefaults", "-no-user-config",
        "-display", "none", "-no-reboot", "-kernel", str(directory / "kernel"), "-initrd", str(directory / "initrd"),
        "-append", arguments, "-chardev", "socket,id=console,fd=%fd1%", "-serial", "chardev:console",
        "-device", "virtio-serial-pci,max_ports=2", "-chardev", "socket,id=channel,fd=%fd0%",
        "-device", f"virtserialport,chardev=channel,name={protocol.PORT}",
    ]  # fmt: skip


def disk_arguments(disks: list[Path]) -> list[str]:
    result = []
    for number, path in enumerate(disks):
        drive = f"if=none,id=disk{number},file={path},format=raw,cache=unsafe"
        result += ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk{number},serial=snf-disk-{number}"]
    return result


def customize(directory: Path, wanted: protocol.Request, disks: list[Path], *, is_warm: bool = False) -> Run:
    """Start the helper with these disks, send the request after its hello, collect what it says."""
    manifest = builder.verify(directory)
    words = machine(directory, manifest.arguments)
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(2)]
        for end in [*pairs[0], *pairs[1]]:
            stack.enter_context(end)
        (channel, channel_inside), (console, console_inside) = pairs
        fds = [channel_inside.fileno(), console_inside.fileno()]
        started = time.monotonic()
        if is_warm:
            state = builder.open_state(directory, manifest, words)
            assert state is not None
            stack.callback(os.close, state)
            fds.append(state)
            words += ["-incoming", f"fd:{state}"]
        line = [word.replace("%fd0%", str(fds[0])).replace("%fd1%", str(fds[1])) for word in words]
        qemu = subprocess.Popen([*line, *disk_arguments(disks)], stdin=subprocess.DEVNULL, pass_fds=fds)
        channel_inside.close()
        console_inside.close()
        try:
            run = _talk(channel, console, wanted, started)
            run.code = qemu.wait(DEADLINE)
        finally:
            qemu.kill()
            qemu.wait()
        run.seconds = time.monotonic() - started
        return run


def _talk(channel: socket.socket, console: socket.socket, wanted: protocol.Request, started: float) -> Run:
    run = Run([], [], 0.0, "", -1)
    frames = protocol.Frames()
    open_ends = [channel, console]
    while open_ends:
        ready, _, _ = select.select(open_ends, [], [], DEADLINE)
        assert ready, f"the helper says nothing any more: {run.console[-3000:]}"
        for end in ready:
            data = end.recv(65536)
            if not data:
                open_ends.remove(end)
            elif end is console:
                run.console += data.decode("utf-8", "replace")
            else:
                for frame in frames.feed(data):
                    run.replies.append(protocol.decode_reply(frame))
                    run.times.append(time.monotonic() - started)
                    if isinstance(run.replies[-1], protocol.Hello):
                        channel.sendall(protocol.encode(wanted))
    return run


def debugfs(image: Path, line: str) -> str:
    """An independent reader of the first partition's ext4."""
    with tempfile.NamedTemporaryFile(suffix=".ext4") as part:
        table = json.loads(subprocess.run(["sfdisk", "-J", image], capture_output=True, check=True).stdout)
        entry = table["partitiontable"]["partitions"][0]
        place = [f"skip={entry['start'] * SECTOR}", f"count={entry['size'] * SECTOR}", f"if={image}", f"of={part.name}"]
        copy = ["dd", "bs=1M", "conv=sparse", "iflag=skip_bytes,count_bytes", "status=none", *place]
        subprocess.run(copy, check=True)
        if line == "fsck":
            done = subprocess.run(["e2fsck", "-fn", part.name], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout
        return subprocess.run(["debugfs", "-R", line, part.name], capture_output=True, text=True, check=True).stdout


def read_file(image: Path, path: str) -> str:
    return debugfs(image, f"cat /{path}")


def partition_end(image: Path) -> int:
    """The sector behind the first partition, as sfdisk reads the table."""
    table = json.loads(subprocess.run(["sfdisk", "-J", image], capture_output=True, check=True).stdout)
    entry = table["partitiontable"]["partitions"][0]
    return int(entry["start"]) + int(entry["size"])


def baseline(folder: Path, kernel: Path) -> float:
    """Seconds of the distribution's kernel booted to busybox and powered off."""
    entries = {
        "/bin/busybox": cpio.file("/bin/busybox", Path("/usr/bin/busybox").read_bytes(), 0o755),
        "/bin/sh": cpio.link("/bin/sh", "busybox"),
        "/init": cpio.file("/init", b"#!/bin/sh\nexec /bin/busybox poweroff -f\n", 0o755),
    }
    initrd = folder / "busybox.cpio"
    initrd.write_bytes(cpio.archive(entries))
    started = time.monotonic()
    machine = [QEMU, "-accel", "tcg", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "null"]
    system = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1"]
    subprocess.run([*machine, *system], check=True, timeout=DEADLINE)
    return time.monotonic() - started


def show(run: Run) -> None:
    for moment, reply in zip(run.times, run.replies, strict=True):
        print(f"{moment:7.3f}  {reply}")
    print(f"{run.seconds:7.3f}  QEMU ended with code {run.code}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Boot the helper VM on a made-up image.")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--console", action="store_true")
    parser.add_argument("--label", choices=("dos", "gpt"), default="dos")
    parser.add_argument("--warm", action="store_true", help="restore a saved state instead of booting")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        directory = folder / "helper"
        builder.build(directory, (lambda arguments: machine(directory, arguments)) if options.warm else None)
        tree = make_tree(folder / "tree")
        seconds = []
        for number in range(options.runs):
            image = make_disk(folder / "disk", tree, label=options.label)
            run = customize(directory, request(), [image], is_warm=options.warm)
            seconds.append(run.seconds)
            if options.console:
                print(run.console)
            if number == 0:
                show(run)
        print("runs:", [round(value, 2) for value in seconds])
        if options.baseline:
            from snf_image import kernel

            print("baseline:", [round(baseline(folder, kernel.best().image), 2) for _ in range(options.runs)])


if __name__ == "__main__":
    main()

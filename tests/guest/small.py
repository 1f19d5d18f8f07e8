# SPDX-License-Identifier: BSD-2-Clause
"""The small guest of the tests: Debian's kernel and a busybox, really booted, up in seconds.

It is enough of a Debian for snf-image (debian_version, fstab, passwd, interfaces), answers ping, and says its host name
to whoever connects to one of its TCP ports. Made from the files of the Debian guest's tree, so it needs no download.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ganeti_plugin.errors import StateError
from ganeti_plugin.run import run
from tests.guest.disk import MIB, Layout, make

#: The last two: the power button, by which Ganeti stops an instance.
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "button", "evdev")

APPEND = "console=ttyS0,115200n8 net.ifnames=0 quiet mitigations=off random.trust_cpu=on nowatchdog panic=1"

INIT_INITRD = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda1 /root || exec /bin/busybox sh
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""

#: What the guest does at boot; `ready` on the console is what waiting programs look for.
RCS = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /run/network
hostname -F /etc/hostname
ip link set lo up
for nic in /sys/class/net/eth*; do [ -e "$nic" ] && echo 0 > /proc/sys/net/ipv6/conf/${nic##*/}/dad_transmits; done
/etc/init.d/network
for port in 22 7 8080; do nc -ll -p $port -e /bin/cat /etc/hostname & done
for button in /dev/input/event*; do (dd if="$button" of=/dev/null bs=24 count=1 2>/dev/null && poweroff) & done
echo "ready: $(cat /etc/hostname)" > /dev/console
"""

#: Debian's ifupdown knows more than busybox' ifup does (allow-hotplug, address/prefix, inet6 auto).
NETWORK = """#!/bin/sh
flush() {
  [ -z "$iface" ] || [ "$iface" = lo ] && return
  ip link set "$iface" up
  case $method in
  static)
    case $address in */*) ;; *)
      case $netmask in *.*) eval "$(ipcalc -p "$address" "$netmask")"; netmask=$PREFIX;; esac
      address=$address/$netmask;;
    esac
    ip addr add "$address" dev "$iface"
    if [ -n "$gateway" ]; then
      ip $family route add default via "$gateway" dev "$iface" 2>/dev/null || {
        ip $family route add "$gateway" dev "$iface"; ip $family route add default via "$gateway" dev "$iface"; }
    fi;;
  dhcp) [ -n "$family" ] || udhcpc -i "$iface" -n -q -t 5 -T 1;;
  esac
  eval "$commands"
}
iface=
while read -r key value; do
  case $key in
  iface)
    flush
    set -- $value
    iface=$1; family=; method=$3; address=; netmask=; gateway=; commands=
    [ "$2" = inet ] || family=-6;;
  address) address=$value;;
  netmask) netmask=$value;;
  gateway) gateway=$value;;
  up|pre-up|post-up) commands="$commands
    $value";;
  esac
done < /etc/network/interfaces
flush
"""

DHCP = """#!/bin/sh
case $1 in bound|renew)
  ip addr flush dev "$interface"
  ip addr add "$ip/${mask:-24}" dev "$interface"
  for gateway in $router; do
    ip route add "$gateway" dev "$interface" 2>/dev/null
    ip route add default via "$gateway" dev "$interface"
  done;;
esac
"""

INITTAB = """::sysinit:/etc/init.d/rcS
ttyS0::respawn:/sbin/getty -L ttyS0 115200 vt100
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
"""

FILES = {
    "etc/init.d/rcS": RCS,
    "etc/init.d/network": NETWORK,
    "usr/share/udhcpc/default.script": DHCP,
    "etc/inittab": INITTAB,
    "etc/hostname": "image-author\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 image-author\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\n",
    "etc/debian_version": "12.0\n",
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian kernel with busybox"\n',
    "etc/resolv.conf": "",
}

FOLDERS = (
    "dev",
    "proc",
    "sys",
    "run",
    "root",
    "tmp",
    "bin",
    "sbin",
    "usr/bin",
    "usr/sbin",
    "var/run",
    "etc/ssh",
    "mnt",
)


def build(image: Path, tree: Path, scratch: Path) -> None:
    """Make `image` from the kernel, modules and busybox in `tree`."""
    root = scratch / "small"
    identifier = uuid.uuid4()
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("etc/init.d/rcS", "etc/init.d/network", "usr/share/udhcpc/default.script"):
        (root / name).chmod(0o755)
    (root / "etc/shadow").chmod(0o640)
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (root / "etc/fstab").write_text(f"UUID={identifier} / ext4 errors=remount-ro 0 1\n")
    _install_busybox(root, tree)
    kernel = kernel_of(tree)
    shutil.copy2(tree / "boot" / f"vmlinuz-{kernel}", root / "vmlinuz")
    (root / "initrd.img").write_bytes(gzip.compress(initrd(tree, kernel), 1))
    make(image, root, Layout(size=64 * MIB, label="small-root", uuid=identifier, append=APPEND), scratch)


def kernel_of(tree: Path) -> str:
    """Version of the newest kernel in the tree."""
    names = sorted(path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*"))
    if not names:
        raise StateError(message="the guest tree has no kernel")
    return names[-1]


def _install_busybox(root: Path, tree: Path) -> None:
    binary = root / "bin/busybox"
    shutil.copy2(tree / "bin/busybox", binary)
    for applet in run([binary, "--list-full"]).stdout.decode().split():
        link = root / applet
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to("/bin/busybox")


def modules(tree: Path, kernel: str) -> list[Path]:
    """Module files for MODULES, dependencies first; what is built in needs none."""
    found: list[Path] = []
    for name in MODULES:
        shown = run(["modprobe", "-d", tree, "-S", kernel, "--show-depends", name]).stdout.decode()
        for line in shown.splitlines():
            words = line.split()
            if words[0] == "insmod" and Path(words[1]) not in found:
                found.append(Path(words[1]))
    return found


def initrd(tree: Path, kernel: str) -> bytes:
    """A cpio archive (newc) with busybox, the modules in loading order and the first program."""
    entries: list[tuple[str, int, bytes]] = [
        (name, 0o040755, b"") for name in ("bin", "dev", "modules", "root", "proc")
    ]
    entries.append(("bin/busybox", 0o100755, (tree / "bin/busybox").read_bytes()))
    for number, path in enumerate(modules(tree, kernel)):
        data = path.read_bytes()
        if path.suffix == ".xz":  # Debian 13; busybox' insmod wants it plain
            data = lzma.decompress(data)
        entries.append((f"modules/{number:02}-{path.name.removesuffix('.xz')}", 0o100644, data))
    entries.append(("init", 0o100755, INIT_INITRD.encode()))
    return b"".join(cpio(entries))


def cpio(entries: list[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """The newc format of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst."""
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        raw = os.fsencode(name) + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        yield header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)

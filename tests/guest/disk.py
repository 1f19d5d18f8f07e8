# SPDX-License-Identifier: BSD-2-Clause
"""A bootable disk image from a directory: MBR, one ext4 partition, extlinux.

Partition nodes of loop devices (/dev/loop0p1) are not to be had everywhere, so the file system is made and mounted by
its offset. syslinux' boot sector learns where its partition starts from the MBR code, not from the loop device.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from ganeti_plugin.run import run

MIB = 1024 * 1024

#: First byte of the only partition.
OFFSET = 1 * MIB

#: The boot code of package syslinux-common for the first 440 bytes of the disk.
MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")

#: extlinux reads ext4 without these.
FEATURES = "^64bit,^metadata_csum"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a disk image is made of."""

    size: int
    """Bytes of the whole disk; smaller than the disk that it will get, so that there is something to grow."""
    label: str
    """Label of the root file system."""
    uuid: uuid.UUID
    """UUID of the root file system."""
    append: str
    """Kernel arguments besides root=."""
    kernel: str = "/vmlinuz"
    initrd: str = "/initrd.img"


def boot_configuration(layout: Layout) -> str:
    """extlinux.conf: no menu, no wait."""
    return (
        "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n"
        f"  KERNEL {layout.kernel}\n  INITRD {layout.initrd}\n  APPEND root=UUID={layout.uuid} ro {layout.append}\n"
    )


def make(image: Path, tree: Path, layout: Layout, scratch: Path) -> None:
    """Write `image` from the files of `tree`, which gets its boot loader configuration on the way."""
    folder = tree / "boot" / "extlinux"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "extlinux.conf").write_text(boot_configuration(layout))
    with image.open("wb") as stream:
        stream.truncate(layout.size)
    _partition(image)
    kibibytes = (layout.size - OFFSET) // 1024
    run(
        [
            "mkfs.ext4", "-q", "-F", "-m", "1", "-b", "4096", "-O", FEATURES, "-L", layout.label,
            "-U", str(layout.uuid), "-E", f"offset={OFFSET},lazy_itable_init=0,lazy_journal_init=0", "-d", tree,
            image, f"{kibibytes}k",
        ],
        timeout=300,
    )  # fmt: skip
    mountpoint = scratch / "mnt"
    mountpoint.mkdir(exist_ok=True)
    run(["mount", "-t", "ext4", "-o", f"loop,offset={OFFSET}", image, mountpoint])
    try:
        for name in (layout.kernel, layout.initrd):
            _rewrite((mountpoint / name.lstrip("/")).resolve())
        run(["extlinux", "--install", mountpoint / "boot" / "extlinux"])
    finally:
        run(["umount", mountpoint])
    run(["e2fsck", "-fn", f"{image}?offset={OFFSET}"], timeout=300)


def _rewrite(path: Path) -> None:
    """Give a file new, whole extents: mkfs leaves holes in it, and extlinux fails on some ("I/O error")."""
    copy = path.with_name(f"{path.name}.new")
    copy.write_bytes(path.read_bytes())
    os.replace(copy, path)


def _partition(image: Path) -> None:
    table = f"label: dos\nstart={OFFSET // 512}, type=83, bootable\n"
    run(["sfdisk", "-q", "--no-reread", "--no-tell-kernel", image], stdin=table.encode())
    with image.open("r+b") as stream:
        stream.write(MBR.read_bytes()[:440])


def copy_sparse(source: Path, target: Path) -> None:
    """Copy `source`, leaving holes where it has them, to a durable `target`."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        position = 0
        while position < size:
            try:
                start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            reader.seek(start)
            writer.seek(start)
            while start < end:
                block = reader.read(min(MIB, end - start))
                if block.strip(b"\0"):
                    writer.write(block)
                else:
                    writer.seek(len(block), os.SEEK_CUR)
                start += len(block)
            position = end
        writer.flush()
        os.fsync(writer.fileno())

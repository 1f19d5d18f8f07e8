# SPDX-License-Identifier: BSD-2-Clause
"""Which file system a partition claims to hold: a few bounded looks at fixed places, pure.

The answer is only a claim of hostile bytes. It decides which of a short list of drivers is asked to mount it, by name,
and nothing else is ever tried (threat H31).
"""

from __future__ import annotations

import dataclasses

#: Bytes of a partition's beginning that `identify` wants to see.
WINDOW = 69632


@dataclasses.dataclass(frozen=True)
class FileSystem:
    """`kind` is the kernel's name; `state` what its superblock says about itself ("clean", "dirty", "")."""

    kind: str
    uuid: str = ""
    label: str = ""
    state: str = ""


#: File systems that may be the root, and the kernel modules that each needs (built in where missing).
ROOT_KINDS = ("ext4", "xfs", "btrfs")

#: File systems that an fstab may add.
EXTRA_KINDS = (*ROOT_KINDS, "vfat")


def _uuid(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _label(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace").rstrip()


def identify(start: bytes) -> FileSystem | None:
    """What the first WINDOW bytes of a partition look like; None when it is nothing that we mount."""
    if start[1080:1082] == b"\x53\xef":
        state = int.from_bytes(start[1082:1084], "little")
        needs_recovery = int.from_bytes(start[1120:1124], "little") & 0x4
        clean = state & 1 and not state & 2 and not needs_recovery
        # ext2 and ext3 are served by the ext4 driver.
        return FileSystem("ext4", _uuid(start[1128:1144]), _label(start[1144:1160]), "clean" if clean else "dirty")
    if start[:4] == b"XFSB":
        return FileSystem("xfs", _uuid(start[32:48]), _label(start[108:120]))
    if start[65600:65608] == b"_BHRfS_M":
        return FileSystem("btrfs", _uuid(start[65568:65584]), _label(start[65835 : 65835 + 256]))
    if start[510:512] == b"\x55\xaa" and start[82:90] == b"FAT32   ":
        return FileSystem("vfat", _serial(start[67:71]), _fat_label(start[71:82]))
    if start[510:512] == b"\x55\xaa" and start[54:59] in (b"FAT12", b"FAT16"):
        return FileSystem("vfat", _serial(start[39:43]), _fat_label(start[43:54]))
    return None


def obstacle(start: bytes) -> str | None:
    """Why a partition that is no file system cannot be used, when that is plain to see (threat H42)."""
    if start[:6] == b"LUKS\xba\xbe":
        return "is encrypted (LUKS)"
    if any(start[sector * 512 :][:8] == b"LABELONE" for sector in range(4)):
        return "is an LVM physical volume"
    if start[4096:4100] == b"\xfc\x4e\x2b\xa9" or start[:4] == b"\xfc\x4e\x2b\xa9":
        return "belongs to a software RAID"
    return None


def _serial(raw: bytes) -> str:
    text = raw[::-1].hex().upper()
    return f"{text[:4]}-{text[4:]}"


def _fat_label(raw: bytes) -> str:
    text = raw.decode("ascii", "replace").rstrip()
    return "" if text == "NO NAME" else text

# SPDX-License-Identifier: BSD-2-Clause
"""Reads an image's fstab, tolerant of its form and strict about what follows from it. Pure."""

from __future__ import annotations

import dataclasses

from snf_image.helper.errors import TaskError

#: The types that may be mounted besides the root; the others that fstab knows are passed over.
TYPES = ("auto", "ext2", "ext3", "ext4", "msdos", "vfat", "btrfs", "xfs")
SOURCES = ("UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=")
ENTRIES_LIMIT = 64


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line: `source` such as "UUID=...", `target` with the octal escapes undone."""

    source: str
    target: str
    kind: str
    options: tuple[str, ...]

    @property
    def is_optional(self) -> bool:
        return "noauto" in self.options or "nofail" in self.options


def unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def wanted(text: str) -> list[Entry]:
    """The entries that belong into the mounted tree, the shorter paths first; the root itself is not among them.

    A device that is not named by what it holds is an error: nobody can say which partition /dev/sdb1 is here.
    """
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        source, target, kind = fields[0], unescape(fields[1]), fields[2]
        options = tuple((fields[3] if len(fields) > 3 else "").split(","))
        if not target.startswith("/") or target.strip("/") == "" or kind not in TYPES or "bind" in options:
            continue
        if source.startswith(("/dev/cdrom", "/dev/sr", "/dev/fd", "/dev/disk/by-id/")) or "noauto" in options:
            continue
        if not source.startswith(SOURCES):
            raise TaskError(f"the image's fstab names {source[:80]!r} for {target[:80]!r}: use UUID= or LABEL= instead")
        found.append(Entry(source, target, kind, options))
    if len(found) > ENTRIES_LIMIT:
        raise TaskError(f"the image's fstab has more than {ENTRIES_LIMIT} file systems")
    return sorted(found, key=lambda entry: len([part for part in entry.target.split("/") if part]))

# SPDX-License-Identifier: BSD-2-Clause
"""MountImage: finds the root partition and mounts it and what its fstab adds, so that nothing in it can be executed."""

from __future__ import annotations

import contextlib
import dataclasses
import os

from snf_image.helper import fstab, modules, partitions, syscalls
from snf_image.helper.disks import DiskDevice
from snf_image.helper.errors import TaskError
from snf_image.helper.filesystems import EXTRA_KINDS, ROOT_KINDS, WINDOW, FileSystem, identify, obstacle
from snf_image.helper.partitions import Partition
from snf_image.helper.task import Context, Task
from snf_image.helper.tree import Tree

TARGET = "/target"
FLAGS = syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOEXEC

#: The driver must not run over a broken file system for long: the first error turns it read-only.
OPTIONS = {"ext4": "errors=remount-ro"}

#: Options for a look that must not write, not even a journal's replay.
LOOK_OPTIONS = {"ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}


@dataclasses.dataclass(frozen=True)
class Volume:
    """A partition with a file system."""

    disk: DiskDevice
    partition: Partition
    file_system: FileSystem

    @property
    def node(self) -> str:
        return self.disk.node_of(self.partition)


def volumes(context: Context) -> list[Volume]:
    """Every partition of the image's disks that holds a file system we know."""
    found = []
    for disk in context.disks:
        try:
            table = partitions.read(disk.read_sectors, disk.sectors)
        except TaskError:
            if disk is context.disk:
                raise
            continue  # a further disk may well be empty
        for partition in table.partitions:
            if partition.is_extended:
                continue
            file_system = identify(disk.read_start(partition, WINDOW))
            if file_system is not None:
                found.append(Volume(disk, partition, file_system))
    return found


def mount(volume: Volume, target: str, flags: int, options: str) -> None:
    kind = volume.file_system.kind
    modules.load(kind)
    try:
        syscalls.mount(volume.node, target, kind, FLAGS | flags, options)
    except OSError as error:
        number = volume.partition.number
        raise TaskError(f"partition {number} of the image cannot be mounted as {kind}: {error.strerror}") from None


def is_root(volume: Volume) -> bool:
    """Whether a file system has /etc/fstab, by a look that changes nothing."""
    mount(volume, TARGET, syscalls.MS_RDONLY, LOOK_OPTIONS.get(volume.file_system.kind, ""))
    try:
        tree = Tree.at(TARGET)
        try:
            return tree.exists("etc/fstab")
        finally:
            tree.close()
    finally:
        syscalls.umount(TARGET)


def find_root(context: Context, found: list[Volume]) -> Volume:
    own = [each for each in found if each.disk is context.disk]
    number = context.properties.number("ROOT_PARTITION")
    if number is not None:
        return _numbered(context, own, number)
    candidates = [each for each in own if each.partition.is_linux and each.file_system.kind in ROOT_KINDS]
    if len(candidates) > 1:
        candidates = [each for each in candidates if is_root(each)]
    if not candidates:
        raise TaskError(f"no Linux root file system was found in the image{_obstacles(context)}")
    if len(candidates) > 1:
        numbers = ", ".join(str(each.partition.number) for each in candidates)
        raise TaskError(f"partitions {numbers} of the image may all be the root: set the property ROOT_PARTITION")
    return candidates[0]


def _numbered(context: Context, own: list[Volume], number: int) -> Volume:
    for each in own:
        if each.partition.number == number:
            if each.file_system.kind not in ROOT_KINDS:
                raise TaskError(f"the root partition {number} holds {each.file_system.kind}, which is not supported")
            return each
    raise TaskError(f"the root partition {number} holds no file system that is known{_obstacles(context)}")


def _obstacles(context: Context) -> str:
    table = partitions.read(context.disk.read_sectors, context.disk.sectors)
    for partition in table.partitions:
        reason = obstacle(context.disk.read_start(partition, WINDOW))
        if reason is not None:
            return f": partition {partition.number} {reason}"
    return ""


def check_family(context: Context) -> None:
    family = (context.properties.text("OSFAMILY") or "linux").strip().lower()
    if family != "linux":
        raise TaskError(f"images of the family {family[:40]!r} cannot be customized yet, only linux")
    context.facts["osfamily"] = family


def run(context: Context) -> None:
    check_family(context)
    found = volumes(context)
    root = find_root(context, found)
    mount(root, TARGET, 0, OPTIONS.get(root.file_system.kind, ""))
    context.mount_points.append(TARGET)
    context.mounted = Tree.at(TARGET)
    context.facts["root_partition"] = str(root.partition.number)
    context.facts["root_file_system"] = root.file_system.kind
    if not context.tree.is_directory("etc"):
        raise TaskError(f"partition {root.partition.number} is no root file system: it has no /etc")
    if _is_read_only():
        raise TaskError("the image's root file system turned read-only while it was mounted")
    others = [each for each in found if each is not root]
    for entry in fstab.wanted(context.tree.read_text("etc/fstab") or ""):
        mount_entry(context, entry, others)


def _is_read_only() -> bool:
    return bool(os.statvfs(TARGET).f_flag & os.ST_RDONLY)


def mount_entry(context: Context, entry: fstab.Entry, others: list[Volume]) -> None:
    volume = next((each for each in others if matches(each, entry)), None)
    if volume is None:
        if not entry.is_optional:
            context.warn(f"no partition of the image is the {entry.source[:80]} that its fstab wants on {entry.target}")
        return
    if volume.file_system.kind not in EXTRA_KINDS:
        raise TaskError(f"the file system for {entry.target} is of a type that is not supported")
    try:
        place = context.tree.open(entry.target, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        context.warn(f"the mount point {entry.target} of the image's fstab is not a directory in the image")
        return
    try:
        mount(volume, f"/proc/self/fd/{place}", 0, "")
    finally:
        os.close(place)
    with contextlib.suppress(OSError):
        context.mount_points.append(_mounted_last())


def _mounted_last() -> str:
    """Where the kernel put the newest mount (its real path, whatever links the image has)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        escaped = stream.read().splitlines()[-1].split(" ")[4]
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        escaped = escaped.replace(code, character)
    return escaped


def matches(volume: Volume, entry: fstab.Entry) -> bool:
    name, _, value = entry.source.partition("=")
    value = value.strip('"')
    offered = {
        "UUID": volume.file_system.uuid,
        "LABEL": volume.file_system.label,
        "PARTUUID": volume.partition.uuid,
        "PARTLABEL": volume.partition.label,
    }
    own = offered.get(name, "")
    return bool(own) and (own == value if name.endswith("LABEL") else own.lower() == value.lower())


TASK = Task(name="MountImage", run=run, after=("FilesystemResizeUnmounted",), excludable=False, needs_mount=True)

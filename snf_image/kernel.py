# SPDX-License-Identifier: BSD-2-Clause
"""The distribution's kernel for the helper VM: which one, its bare image, and the modules that the helper needs.

QEMU can enter an uncompressed kernel directly (PVH). That saves the firmware's and the kernel's own unpacking, a third
of a second under TCG, so the image inside a package's vmlinuz is taken out once, when the helper is built.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gzip
import lzma
import re
import zlib
from pathlib import Path

from ganeti_plugin.errors import StateError

#: Modules for each purpose, without their dependencies; what the kernel has built in is left out.
PURPOSES = {
    "boot": ("virtio_pci", "virtio_blk", "virtio_console"),
    "ext4": ("crc32c_generic", "ext4"),
    "xfs": ("crc32c_generic", "xfs"),
    "btrfs": ("crc32c_generic", "btrfs"),
    "vfat": ("nls_cp437", "nls_ascii", "nls_iso8859-1", "vfat"),
}

#: Bytes of an unpacked kernel or module; a larger one is no kernel of a distribution.
SIZE_LIMIT = 512 << 20


class KernelError(StateError):
    template = "{message}"
    hint = "install a kernel for virtual machines, for instance: apt-get install linux-image-cloud-amd64"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An installed kernel: its release ("6.1.0-56-cloud-amd64"), packed image and modules."""

    release: str
    image: Path
    modules: Path

    @property
    def is_for_clouds(self) -> bool:
        """Whether it is the flavour for virtual machines: smaller, and booted sooner."""
        return "-cloud-" in self.release

    @property
    def order(self) -> tuple[bool, list[tuple[int, str]]]:
        parts = re.findall(r"(\d+)|(\D+)", self.release)
        return self.is_for_clouds, [(int(number) if number else -1, text) for number, text in parts]


def installed(root: Path = Path("/")) -> list[Kernel]:
    """The kernels that have both image and modules, the best one first."""
    found = []
    for image in (root / "boot").glob("vmlinuz-*"):
        release = image.name.removeprefix("vmlinuz-")
        modules = root / "lib/modules" / release
        if image.is_file() and (modules / "modules.dep").is_file():
            found.append(Kernel(release, image, modules))
    return sorted(found, key=lambda kernel: kernel.order, reverse=True)


def best(root: Path = Path("/")) -> Kernel:
    kernels = installed(root)
    if not kernels:
        raise KernelError(message="no kernel with its modules is installed for the helper VM")
    return kernels[0]


# --- image -----------------------------------------------------------------------------------------------------------


def bare_image(packed: bytes) -> bytes:
    """The ELF image inside a bzImage; the bzImage itself when its packing is unknown (QEMU boots that too)."""
    if packed[0x202:0x206] != b"HdrS":
        return packed
    start = (packed[0x1F1] + 1) * 512 + int.from_bytes(packed[0x248:0x24C], "little")
    payload = packed[start : start + int.from_bytes(packed[0x24C:0x250], "little")]
    try:
        image = unpacked(payload)
    except (ValueError, OSError, EOFError, lzma.LZMAError, zlib.error):
        return packed
    return image if image[:4] == b"\x7fELF" else packed


def unpacked(data: bytes) -> bytes:
    """What a kernel's or module's packing holds, by its first bytes."""
    if data[:2] == b"\x1f\x8b":
        return zlib.decompressobj(wbits=31).decompress(data, SIZE_LIMIT)
    if data[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(data, SIZE_LIMIT)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return _zstd(data)
    if data[:4] == b"\x02\x21\x4c\x18":
        return _lz4(data)
    return data


def _zstd(data: bytes) -> bytes:
    """By libzstd, which dpkg needs anyway. A kernel's build appends four bytes: the unpacked size."""
    library = ctypes.CDLL("libzstd.so.1")
    for function in (library.ZSTD_decompress, library.ZSTD_findFrameCompressedSize):
        function.restype = ctypes.c_size_t
    library.ZSTD_getFrameContentSize.restype = ctypes.c_ulonglong
    length = library.ZSTD_findFrameCompressedSize(data, ctypes.c_size_t(len(data)))
    if library.ZSTD_isError(ctypes.c_size_t(length)):
        raise ValueError("damaged zstd data")
    size = library.ZSTD_getFrameContentSize(data, ctypes.c_size_t(len(data)))
    if size > SIZE_LIMIT:
        size = int.from_bytes(data[-4:], "little")
    if size > SIZE_LIMIT:
        raise ValueError("zstd data without a size")
    buffer = ctypes.create_string_buffer(size)
    result = library.ZSTD_decompress(buffer, ctypes.c_size_t(size), data, ctypes.c_size_t(length))
    if result != size:
        raise ValueError("damaged zstd data")
    return buffer.raw


def _lz4(data: bytes) -> bytes:
    """The legacy format: blocks of up to 8 MiB, each after its size; by liblz4, which apt and systemd need anyway."""
    library = ctypes.CDLL("liblz4.so.1")
    capacity = 8 << 20
    buffer = ctypes.create_string_buffer(capacity)
    result = bytearray()
    position = 4
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        block = data[position + 4 : position + 4 + length]
        size = library.LZ4_decompress_safe(block, buffer, len(block), capacity)
        if size <= 0 or len(result) > SIZE_LIMIT:
            raise ValueError("damaged LZ4 data")
        result += memoryview(buffer)[:size]
        position += 4 + length
    return bytes(result)


# --- modules ---------------------------------------------------------------------------------------------------------


def _name(path: str) -> str:
    return path.rpartition("/")[2].split(".ko")[0].replace("-", "_")


def dependencies(text: str) -> dict[str, list[str]]:
    """modules.dep: for each module's name its file, then the files it needs, relative to the modules' folder."""
    found = {}
    for line in text.splitlines():
        path, _, needs = line.partition(":")
        found[_name(path)] = [path, *needs.split()]
    return found


def plan_modules(text: str, purposes: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """For each purpose the module files in the order to load; a module that is not listed is built in or not there."""
    known = dependencies(text)
    result: dict[str, list[str]] = {}
    for purpose, names in purposes.items():
        files: list[str] = []
        for name in names:
            # modules.dep names the nearest need first: loading goes from its end.
            for path in reversed(known.get(name.replace("-", "_"), [])):
                if path not in files:
                    files.append(path)
        result[purpose] = files
    return result


def module_data(kernel: Kernel, path: str) -> bytes:
    data = (kernel.modules / path).read_bytes()
    return gzip.decompress(data) if path.endswith(".gz") else unpacked(data)


def module_name(path: str) -> str:
    """The name of a module's file in the helper, where it is not packed."""
    return _name(path) + ".ko"

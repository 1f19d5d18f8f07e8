# SPDX-License-Identifier: BSD-2-Clause
"""Which kernel is chosen, what is taken out of it, and the order of its modules."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from snf_image import kernel

DEPENDENCIES = """kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/fs/nls/nls_iso8859-1.ko:
"""


def install(root: Path, release: str, *, with_modules: bool = True) -> None:
    (root / "boot").mkdir(exist_ok=True)
    (root / "boot" / f"vmlinuz-{release}").write_bytes(b"")
    if with_modules:
        folder = root / "lib/modules" / release
        folder.mkdir(parents=True)
        (folder / "modules.dep").write_text("")


def test_the_newest_cloud_kernel_wins(tmp_path: Path) -> None:
    for release in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.12.0-1-amd64"):
        install(tmp_path, release)
    install(tmp_path, "7.0.0-1-cloud-amd64", with_modules=False)
    assert kernel.best(tmp_path).release == "6.1.0-10-cloud-amd64"


def test_no_kernel_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(kernel.KernelError, match="apt-get install linux-image-cloud-amd64"):
        kernel.best(tmp_path)


def packed(payload: bytes) -> bytes:
    """A bzImage with one sector of setup."""
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    head[0x24C:0x250] = len(payload).to_bytes(4, "little")
    return bytes(head) + payload


ELF = b"\x7fELF" + bytes(100)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, lambda data: lzma.compress(data) + b"\x68\0\0\0"])
def test_the_image_is_taken_out(pack: object) -> None:
    assert callable(pack)
    assert kernel.bare_image(packed(pack(ELF))) == ELF


@pytest.mark.parametrize("payload", [b"", b"unknown", b"\x1f\x8bdamaged", gzip.compress(b"no kernel")])
def test_what_cannot_be_unpacked_is_booted_as_it_is(payload: bytes) -> None:
    assert kernel.bare_image(packed(payload)) == packed(payload)


def test_modules_are_loaded_after_what_they_need() -> None:
    plan = kernel.plan_modules(DEPENDENCIES, {"boot": ("virtio_pci",), "vfat": ("nls_iso8859-1", "built_in")})
    assert plan == {
        "boot": [
            "kernel/drivers/virtio/virtio.ko",
            "kernel/drivers/virtio/virtio_ring.ko",
            "kernel/drivers/virtio/virtio_pci.ko.xz",
        ],
        "vfat": ["kernel/fs/nls/nls_iso8859-1.ko"],
    }


def test_module_names() -> None:
    assert kernel.module_name("kernel/fs/nls/nls_iso8859-1.ko.xz") == "nls_iso8859_1.ko"

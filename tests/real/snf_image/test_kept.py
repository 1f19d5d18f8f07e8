# SPDX-License-Identifier: BSD-2-Clause
"""A clone of an Archipelago image is customized by the properties that are kept beside the image."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.extstorage import provider
from tests.real.snf_image import helper_vm as vm
from tests.real.snf_image import os_definition as scripts

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("helper_vm")]

MIB = 1 << 20
IMAGE = "test-kept"


@pytest.fixture(scope="module", autouse=True)
def image(module_folder: Path) -> Iterator[Path]:
    """An image that says whose password it is that a user sets."""
    disk = vm.make_disk(module_folder / "image", vm.make_tree(module_folder / "tree"), size=64 * MIB, disk=64 * MIB)
    done = provider.command("image", "import", IMAGE, disk, "-p", "osfamily=linux", "-p", "USERS=user")
    assert done.returncode == 0, done.stderr
    yield disk
    provider.command("image", "remove", IMAGE)


@pytest.fixture
def volume() -> Iterator[str]:
    name = provider.new_name()
    provider.do("create", name, VOL_SIZE="64", EXTP_ORIGIN=IMAGE)
    yield name
    provider.do("detach", name)
    provider.do("remove", name)


def shadow(volume: str, folder: Path) -> list[str]:
    """The password fields of root and user, read from a copy of the volume."""
    copy = folder / "copy"
    subprocess.run(["nbdcopy", provider.uri(volume), copy], check=True)
    lines = vm.read_file(copy, "etc/shadow").splitlines()
    return [line.split(":")[1] for line in lines if line.split(":")[0] in ("root", "user")]


def test_by_uri(volume: str, folder: Path) -> None:
    _, _, uri = provider.do("attach", volume).partition("\nkvm:")
    log = scripts.create(uri=uri, OSP_IMG_PASSWD="geheim", OSP_AUTH_KEYS="-")
    assert "brings the properties OSFAMILY, USERS" in log
    root, user = shadow(volume, folder)
    assert root == "!"
    assert user.startswith("$6$")


def test_by_block_device(volume: str, folder: Path) -> None:
    device = provider.do("attach", volume, EXTP_ACCESS="kernelspace")
    scripts.create(Path(device), OSP_IMG_PASSWD="geheim", OSP_AUTH_KEYS="-")
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    root, user = shadow(volume, folder)
    assert root == "!"
    assert user.startswith("$6$")


def test_given_properties_replace_them(volume: str, folder: Path) -> None:
    _, _, uri = provider.do("attach", volume).partition("\nkvm:")
    scripts.create(uri=uri, OSP_IMG_PASSWD="geheim", OSP_AUTH_KEYS="-", OSP_IMG_PROPERTIES='{"NOTE": "none"}')
    root, user = shadow(volume, folder)
    assert root.startswith("$6$")
    assert user == "*"


def test_hostile_properties_are_refused(image: Path) -> None:
    """Data, not code, and not believed: the creation fails before a byte of the disk is changed."""
    name, volume = f"{IMAGE}-hostile", provider.new_name()
    assert provider.command("image", "import", name, image, "-p", "USERS=$(reboot)").returncode == 0
    provider.do("create", volume, VOL_SIZE="64", EXTP_ORIGIN=name)
    _, _, uri = provider.do("attach", volume).partition("\nkvm:")
    try:
        assert "USERS holds something that is no account's name" in scripts.refused(uri=uri)
    finally:
        provider.do("detach", volume)
        provider.do("remove", volume)
        provider.command("image", "remove", name)

# SPDX-License-Identifier: BSD-2-Clause
"""Which file systems of an image's fstab are mounted."""

from __future__ import annotations

import pytest

from snf_image.helper import fstab
from snf_image.helper.errors import TaskError

TEXT = """# comment
UUID=1 / ext4 errors=remount-ro 0 1
UUID=4 /var/lib ext4 defaults
UUID=2 /boot/efi vfat umask=0077
LABEL=my\\040var /var xfs
proc /proc proc defaults
tmpfs /tmp tmpfs defaults
UUID=3 none swap sw
UUID=3 swap swap sw
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto
/dev/cdrom /mnt auto
UUID=5 /backup ext4 noauto
short
"""


def test_what_is_wanted() -> None:
    found = fstab.wanted(TEXT)
    assert [(entry.source, entry.target) for entry in found] == [
        ("LABEL=my\\040var", "/var"),
        ("UUID=4", "/var/lib"),
        ("UUID=2", "/boot/efi"),
    ]


def test_a_device_by_name_is_an_error() -> None:
    with pytest.raises(TaskError, match="/dev/sdb1"):
        fstab.wanted("/dev/sdb1 /var ext4 defaults 0 2")


def test_too_many() -> None:
    with pytest.raises(TaskError, match="more than 64"):
        fstab.wanted("".join(f"UUID={n} /m{n} ext4\n" for n in range(65)))


def test_escapes() -> None:
    assert fstab.wanted("UUID=1 /my\\040files ext4")[0].target == "/my files"

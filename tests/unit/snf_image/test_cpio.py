# SPDX-License-Identifier: BSD-2-Clause
"""The archive is what the kernel's documentation calls newc."""

from __future__ import annotations

import stat

from snf_image import cpio


def parse(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader of our own: name -> mode, content."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        name_end = position + 110 + fields[11]
        name = data[position + 110 : name_end - 1].decode()
        start = -(-name_end // 4) * 4
        if name == cpio.TRAILER:
            return found
        found[name] = (fields[1], data[start : start + fields[6]])
        position = -(-(start + fields[6]) // 4) * 4


def test_parents_come_first_and_content_survives() -> None:
    entries = [cpio.file("/usr/bin/x", b"abc", 0o755), cpio.link("/bin", "usr/bin"), cpio.file("/a", b"")]
    data = cpio.archive({entry.path: entry for entry in entries})
    found = parse(data)
    assert list(found) == ["a", "bin", "usr", "usr/bin", "usr/bin/x"]
    assert found["usr/bin/x"] == (stat.S_IFREG | 0o755, b"abc")
    assert found["bin"] == (stat.S_IFLNK | 0o777, b"usr/bin")
    assert stat.S_ISDIR(found["usr"][0])


def test_the_same_content_gives_the_same_bytes() -> None:
    one = {path: cpio.file(path, path.encode()) for path in ("/b", "/a")}
    other = dict(reversed(list(one.items())))
    assert cpio.archive(one) == cpio.archive(other)


def test_a_device_keeps_its_number() -> None:
    data = cpio.archive({"/dev/urandom": cpio.character_device("/dev/urandom", 1, 9)})
    record = data[data.index(b"dev/urandom") - 110 :]
    assert record[6 + 8 * 9 : 6 + 8 * 11] == b"0000000100000009"

# SPDX-License-Identifier: BSD-2-Clause
"""Account files as hostile or careless authors leave them (threat H38)."""

from __future__ import annotations

import pytest

from snf_image.helper import accounts


def test_the_first_of_two_lines_counts() -> None:
    found = accounts.parse("root:x:0:0:root:/root:/bin/sh\nroot:x:7:7::/tmp:/bin/sh\n")
    assert found["root"] == accounts.Account("root", 0, 0, "/root")


@pytest.mark.parametrize(
    "line",
    ["", ":", "root", "root:x:0:0", "root:x:zero:0::/root:", "root:x:-1:0::/root:", ":x:0:0::/:", "root:x:²:0::/:"],
)
def test_broken_lines_are_no_accounts(line: str) -> None:
    assert accounts.parse(f"{line}\nuser:x:1000:1000::/home/user:/bin/sh").keys() == {"user"}


def test_groups() -> None:
    assert accounts.groups("root:x:0:\nbad\nuser:x:1000:a,b\r\n") == {"root": 0, "user": 1000}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("root:!:1:0:9:7:::\nuser:*:1:::::\n", "root:H:5:0:99999:7:::\nuser:*:1:::::\n"),
        ("user:*:1:::::\nroot:!:1::::::", "user:*:1:::::\nroot:H:5:0:99999:7:::\n"),
        ("user:*:1:::::", "user:*:1:::::\nroot:H:5:0:99999:7:::\n"),
        ("", "root:H:5:0:99999:7:::\n"),
        ("root:a\nroot:b\n", "root:H:5:0:99999:7:::\nroot:H:5:0:99999:7:::\n"),
        ("rooty:a\n#root:b\n", "rooty:a\n#root:b\nroot:H:5:0:99999:7:::\n"),
    ],
)
def test_the_password_field(old: str, new: str) -> None:
    assert accounts.with_password(old, "root", "H", 5) == new


def test_a_password_in_passwd_gives_way_to_shadow() -> None:
    old = "root::0:0::/root:/bin/sh\nuser:hash:1:1::/:/bin/sh\nother:hash:2:2::/:/bin/sh"
    assert accounts.with_shadowed(old, ["root", "user"]) == (
        "root:x:0:0::/root:/bin/sh\nuser:x:1:1::/:/bin/sh\nother:hash:2:2::/:/bin/sh"
    )

# SPDX-License-Identifier: BSD-2-Clause
"""sshd_config is read as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from snf_image.helper import ssh_config
from snf_image.helper.accounts import Account
from snf_image.helper.errors import TaskError
from snf_image.helper.tree import Tree

USER = Account("user", 1000, 1000, "/home/user")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "home/user/.ssh/authorized_keys"),
        ("#AuthorizedKeysFile other", "home/user/.ssh/authorized_keys"),
        ("AuthorizedKeysFile keys other", "home/user/keys"),
        ("authorizedkeysfile=/etc/ssh/keys/%u", "etc/ssh/keys/user"),
        ("AuthorizedKeysFile %h/k%%%U", "home/user/k%1000"),
        ("AuthorizedKeysFile one\nAuthorizedKeysFile two", "home/user/one"),
        ("Match User user\nAuthorizedKeysFile trap", "home/user/.ssh/authorized_keys"),
        ("AuthorizedKeysFile $(touch /tmp/x)", "home/user/$(touch"),
        ("AuthorizedKeysFile none", None),
    ],
)
def test_where_keys_go(text: str, path: str | None) -> None:
    assert ssh_config.authorized_keys_path(ssh_config.parse(text), USER) == path


@pytest.mark.parametrize(
    "text", ["AuthorizedKeysFile ../../etc/shadow", "AuthorizedKeysFile %x", "AuthorizedKeysFile %"]
)
def test_impossible_places(text: str) -> None:
    with pytest.raises(TaskError):
        ssh_config.authorized_keys_path(ssh_config.parse(text), USER)


def test_drop_ins_come_first(tmp_path: Path) -> None:
    folder = tmp_path / "etc/ssh/sshd_config.d"
    folder.mkdir(parents=True)
    (folder / "10.conf").write_text("AuthorizedKeysFile first\n")
    (folder / "ignored").write_text("AuthorizedKeysFile never\n")
    (tmp_path / "etc/ssh/sshd_config").write_text("AuthorizedKeysFile second\nHostKey /etc/ssh/key\n")
    settings = ssh_config.read(Tree.at(str(tmp_path)))
    assert ssh_config.authorized_keys_path(settings, USER) == "home/user/first"
    assert ssh_config.host_key_paths(settings) == ["/etc/ssh/key"]

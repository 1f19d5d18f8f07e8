# SPDX-License-Identifier: BSD-2-Clause
"""The tasks that edit files, on a tree in a temporary folder."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from snf_image import protocol
from snf_image.helper.errors import TaskError
from snf_image.helper.tasks import (
    assign_hostname,
    change_machine_id,
    change_password,
    delete_ssh_keys,
    enforce_personality,
)
from tests.unit.snf_image.helper.support import context_of, tree_of

OWNER = f"{os.getuid()}:{os.getgid()}"
PASSWD = f"root:x:{OWNER}:root:/root:/bin/sh\nuser:x:{OWNER}::/home/user:/bin/sh\n"
KEY = "ssh-ed25519 AAAAC3Nz demo"


@pytest.fixture(autouse=True)
def _no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving files to root needs root."""
    monkeypatch.setattr("os.fchown", lambda *_arguments: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {"etc/passwd": PASSWD, "etc/shadow": "root:!:1::::::\nuser:*:1::::::\n", "root/.x": "", "home/user/.x": ""}
    return tree_of(tmp_path, {**files, "etc/group": f"root:x:{os.getgid()}:\n", "etc/hosts": "127.0.0.1 localhost\n"})


# --- AssignHostname


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("127.0.0.1 localhost\n", "127.0.0.1 localhost\n127.0.1.1\tweb1.example.org web1\n"),
        ("127.0.1.1 old old2\n::1 x\n", "127.0.1.1\tweb1.example.org web1\n::1 x\n"),
        ("127.0.1.1 a\n127.0.1.1 b", "127.0.1.1\tweb1.example.org web1\n"),
        ("", "127.0.1.1\tweb1.example.org web1\n"),
        ("# 127.0.1.1 a\n127.0.1.10 b\n", "127.0.1.1\tweb1.example.org web1\n# 127.0.1.1 a\n127.0.1.10 b\n"),
    ],
)
def test_hosts(old: str, new: str) -> None:
    assert assign_hostname.hosts_with(old, "web1.example.org") == new


def test_a_short_name_stands_once() -> None:
    assert assign_hostname.hosts_with("", "web1") == "127.0.1.1\tweb1\n"


@pytest.mark.parametrize("name", ["a b", "a;reboot", "-a", "a..b", "ä", "a" * 64, "a\nb", "", "a_b", "$(x)"])
def test_what_is_no_host_name(name: str) -> None:
    with pytest.raises(TaskError, match="not a host name"):
        assign_hostname.checked(name)


def test_assign_hostname(root: Path) -> None:
    assign_hostname.run(context_of(root))
    assert (root / "etc/hostname").read_text() == "web1.example.org\n"


# --- ChangeMachineId


def test_both_files_get_one_new_identity(root: Path) -> None:
    tree_of(root, {"etc/machine-id": "old\n", "var/lib/dbus/machine-id": "old\n"})
    change_machine_id.run(context_of(root))
    one, other = ((root / path).read_text() for path in change_machine_id.PATHS)
    assert one == other != "old\n"
    assert len(one) == 33


def test_a_missing_identity_stays_missing(root: Path) -> None:
    change_machine_id.run(context_of(root))
    assert not (root / "etc/machine-id").exists()


# --- ChangePassword


def test_a_password_is_hashed(root: Path) -> None:
    change_password.run(context_of(root, password="secret: word"))
    field = (root / "etc/shadow").read_text().split(":")[1]
    assert field.startswith("$6$")
    from snf_image.helper import syscalls

    assert syscalls.crypt(b"secret: word", field.encode()) == field


def test_two_hashes_of_one_password_differ() -> None:
    assert change_password.hashed("x", None) != change_password.hashed("x", None)


@pytest.mark.parametrize(("method", "prefix"), [("sha256", "$5$"), ("MD5", "$1$"), ("blowfish", "$2b$"), (None, "$6$")])
def test_methods(method: str | None, prefix: str) -> None:
    assert change_password.hashed("x", method).startswith(prefix)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(TaskError, match="PASSWD_HASHING_METHOD"):
        change_password.hashed("x", "rot13")


def test_an_empty_password_is_an_empty_field() -> None:
    assert change_password.hashed("", None) == ""


@pytest.mark.parametrize("value", ["a:b", "a\nroot::0", "a\0"])
def test_a_hash_that_would_break_the_file(value: str) -> None:
    with pytest.raises(TaskError):
        change_password.checked_hash(value)


def test_users_of_the_property(root: Path) -> None:
    change_password.run(context_of(root, password_hash="H", properties={"users": "user root"}))
    lines = (root / "etc/shadow").read_text().splitlines()
    assert [line.split(":")[1] for line in lines] == ["H", "H"]


def test_an_absent_user_is_an_error_before_any_change(root: Path) -> None:
    before = (root / "etc/shadow").read_text()
    with pytest.raises(TaskError, match="no user 'ghost'"):
        change_password.run(context_of(root, password="x", users=("root", "ghost")))
    assert (root / "etc/shadow").read_text() == before


def test_keys_are_added_once_with_the_right_modes(root: Path) -> None:
    for _ in range(2):
        change_password.run(context_of(root, auth_keys=(KEY, "", "  ")))
    path = root / "root/.ssh/authorized_keys"
    assert path.read_text() == KEY + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_author_s_keys_stay_and_are_reported(root: Path) -> None:
    tree_of(root, {"root/.ssh/authorized_keys": "ssh-rsa AAAA author"})
    warnings: list[str] = []
    change_password.run(context_of(root, warnings, auth_keys=(KEY,)))
    assert (root / "root/.ssh/authorized_keys").read_text() == f"ssh-rsa AAAA author\n{KEY}\n"
    assert "1 authorized keys of its own" in warnings[0]


def test_a_key_with_control_characters_is_refused(root: Path) -> None:
    with pytest.raises(TaskError, match="control character"):
        change_password.run(context_of(root, auth_keys=("ssh-rsa A\x1b[2J",)))


# --- DeleteSSHKeys


def test_which_keys_go_and_which_are_made() -> None:
    names = ["moduli", "ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"]
    assert delete_ssh_keys.old_keys(names, [("hostkey", ["/srv/key"]), ("hostkey", ["/../x"])]) == [
        "etc/ssh/ssh_host_rsa_key",
        "etc/ssh/ssh_host_rsa_key.pub",
        "srv/key",
        "srv/key.pub",
    ]
    assert delete_ssh_keys.kinds_for([]) == ("ed25519", "ecdsa")
    assert delete_ssh_keys.kinds_for([("hostkey", ["/etc/ssh/ssh_host_rsa_key"])]) == ("rsa",)
    both = [("hostkey", ["/etc/ssh/ssh_host_rsa_key"]), ("hostkey", ["/etc/ssh/ssh_host_ed25519_key"])]
    assert delete_ssh_keys.kinds_for(both) == ("ed25519",)


def test_without_sshd_no_key_is_made(root: Path) -> None:
    tree_of(root, {"etc/ssh/ssh_host_rsa_key": "old"})
    context = context_of(root)
    delete_ssh_keys.run(context)
    assert os.listdir(root / "etc/ssh") == []
    assert context.facts["host_keys_removed"] == "1"


# --- EnforcePersonality


def file_of(**changes: object) -> protocol.PersonalityFile:
    values: dict[str, object] = {"path": "/a/b", "contents": base64.b64encode(b"hi").decode(), "mode": 0o440}
    return protocol.PersonalityFile(**{**values, **changes})  # type: ignore[arg-type] # the tests' own keywords


def test_a_file_is_injected(root: Path) -> None:
    enforce_personality.run(context_of(root, personality=(file_of(),)))
    assert (root / "a/b").read_bytes() == b"hi"
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o440
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o750


@pytest.mark.parametrize(
    "changes",
    [{"path": "a"}, {"path": "/../x"}, {"owner": "ghost"}, {"group": "ghost"}, {"contents": "%"}, {"path": "/etc"}],
    ids=str,
)
def test_what_cannot_be_injected(root: Path, changes: dict[str, object]) -> None:
    with pytest.raises(TaskError):
        enforce_personality.run(context_of(root, personality=(file_of(**changes),)))

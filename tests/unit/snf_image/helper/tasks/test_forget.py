# SPDX-License-Identifier: BSD-2-Clause
"""The tasks that make an image of a machine, on a tree in a temporary folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snf_image.helper import syscalls
from snf_image.helper.errors import TaskError
from snf_image.helper.tasks import (
    forget_cloud_init,
    forget_history,
    forget_host_keys,
    forget_identity,
    forget_logins,
    forget_network,
    forget_swap,
    trim_filesystems,
)
from tests.unit.snf_image.helper.support import Warnings, context_of, tree_of

PASSWD = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nodd:$1$x$y:7:7::/../etc:/bin/sh\nbad line\n"
FILES = {
    "etc/passwd": PASSWD,
    "etc/passwd-": "x",
    "etc/shadow-": "x",
    "etc/shadow": "root:$6$a$b:1:0:9:7:::\nann::1::::::\nlocked:!$6$a$b:1::::::\ndaemon:*:1::::::\nnone\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1\tweb1.example.org web1\n::1 localhost\n",
    "etc/hostname": "web1\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/ssh/sshd_config": "HostKey /etc/keys/own\n",
    "etc/ssh/ssh_host_rsa_key": "x",
    "etc/ssh/ssh_host_rsa_key.pub": "x",
    "etc/ssh/moduli": "x",
    "etc/keys/own": "x",
    "etc/udev/rules.d/70-persistent-net.rules": "x",
    "etc/udev/rules.d/60-mine.rules": "x",
    "home/ann/.ssh/authorized_keys": "x",
    "home/ann/.ssh/id_ed25519": "x",
    "home/ann/.ssh/config": "x",
    "home/ann/.bash_history": "x",
    "home/ann/.bashrc": "x",
    "root/.ssh/authorized_keys": "x",
    "root/.lesshst": "x",
    "tmp/a/b": "x",
    "var/lib/cloud/instances/i-1/user-data.txt": "x",
    "var/lib/cloud/seed/nocloud-net/user-data": "x",
    "var/lib/dbus/machine-id": "x",
    "var/lib/dhcp/dhclient.eth0.leases": "x",
    "var/lib/NetworkManager/internal-1.lease": "x",
    "var/lib/NetworkManager/NetworkManager.state": "x",
    "var/lib/systemd/random-seed": "x",
    "var/log/syslog": "x",
    "var/log/syslog.1": "x",
    "var/log/syslog.2.gz": "x",
    "var/log/apt/history.log": "x",
    "var/log/journal/0123/system.journal": "x",
    "var/mail/root": "x",
}


@pytest.fixture(autouse=True)
def _no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving files to root needs root."""
    monkeypatch.setattr("os.fchown", lambda *_arguments: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree_of(tmp_path, FILES)


def gone(root: Path) -> set[str]:
    """Files of the tree that are not there any more."""
    return {name for name in FILES if not (root / name).exists()}


def test_host_keys(root: Path) -> None:
    context = context_of(root)
    forget_host_keys.run(context)
    assert gone(root) == {"etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "etc/keys/own"}
    assert context.facts["host_keys_removed"] == "3"


def test_identity(root: Path) -> None:
    forget_identity.run(context_of(root))
    assert gone(root) == {"var/lib/dbus/machine-id", "var/lib/systemd/random-seed"}
    assert (root / "etc/machine-id").read_text() == ""
    assert (root / "etc/hostname").read_text() == "localhost\n"
    assert (root / "etc/hosts").read_text() == "127.0.0.1 localhost\n::1 localhost\n"


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    tasks = (forget_cloud_init, forget_history, forget_host_keys, forget_identity, forget_logins, forget_network)
    for module in tasks:
        module.run(context_of(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["etc"]


def test_network(root: Path) -> None:
    forget_network.run(context_of(root))
    assert gone(root) == {
        "etc/udev/rules.d/70-persistent-net.rules",
        "var/lib/dhcp/dhclient.eth0.leases",
        "var/lib/NetworkManager/internal-1.lease",
    }


def test_cloud_init(root: Path) -> None:
    forget_cloud_init.run(context_of(root))
    assert gone(root) == {name for name in FILES if name.startswith("var/lib/cloud/")}
    assert list((root / "var/lib/cloud").iterdir()) == []


def test_logins(root: Path) -> None:
    context = context_of(root)
    forget_logins.run(context)
    keys = {"home/ann/.ssh/authorized_keys", "home/ann/.ssh/id_ed25519", "root/.ssh/authorized_keys"}
    assert gone(root) == {*keys, "etc/passwd-", "etc/shadow-"}
    shadow = [line.split(":")[1:2] for line in (root / "etc/shadow").read_text().splitlines()]
    assert shadow == [["!"], ["!"], ["!$6$a$b"], ["*"], []]
    assert "odd:!:7:7" in (root / "etc/passwd").read_text()
    assert (root / "etc/passwd").read_text().startswith("root:x:0")
    assert (context.facts["passwords_locked"], context.facts["key_files_removed"]) == ("3", "3")


def test_history(root: Path) -> None:
    forget_history.run(context_of(root))
    logs = {"var/log/syslog.1", "var/log/syslog.2.gz", "var/log/journal/0123/system.journal"}
    assert gone(root) == {*logs, "home/ann/.bash_history", "root/.lesshst", "tmp/a/b", "var/mail/root"}
    assert (root / "var/log/syslog").read_text() == (root / "var/log/apt/history.log").read_text() == ""
    assert list((root / "tmp").iterdir()) == []


def test_links_lead_nowhere_else(root: Path, tmp_path: Path) -> None:
    """H35, H36: what a name in an emptied folder points to stays; special files are neither opened nor waited for."""
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("x")
    (root / "tmp/link").symlink_to("/precious")
    (root / "var/log/link").symlink_to("/precious/file")
    os.mkfifo(root / "var/log/fifo")
    os.mkfifo(root / "tmp/fifo")
    forget_history.run(context_of(root))
    assert (outside / "file").read_text() == "x"
    assert (root / "var/log/fifo").exists()
    assert list((root / "tmp").iterdir()) == []


def test_a_tree_without_end_is_refused(root: Path) -> None:
    place = os.open(root / "tmp", os.O_RDONLY)
    for _ in range(150):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    with pytest.raises(TaskError, match="nested too deeply"):
        forget_history.run(context_of(root))


def test_swap_files_are_told() -> None:
    text = "/swapfile none swap sw 0 0\n/dev/vda2 none swap sw\n#/old none swap sw 0 0\nUUID=1 / ext4 x 0 1\nshort\n"
    assert forget_swap.swap_files(text) == ["/swapfile", "/dev/vda2"]


def test_trim_counts_and_tells_what_it_cannot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trim(place: str) -> int:
        if place == "/no":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return 4096

    monkeypatch.setattr(syscalls, "trim", trim)
    warnings = Warnings()
    context = context_of(root, warnings)
    context.mount_points = ["/a", "/no", "/b"]
    trim_filesystems.run(context)
    assert context.facts["trimmed_bytes"] == "8192"
    assert len(warnings) == 1

# SPDX-License-Identifier: BSD-2-Clause
"""Hostile content of a mounted tree: links, special files, sizes, hard links (threats H35-H37)."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from snf_image.helper.errors import TaskError
from snf_image.helper.tree import READ_LIMIT, Tree

OWN = {"uid": os.getuid(), "gid": os.getgid()}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.write_text("untouched")
    return path


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    path = tmp_path / "tree"
    (path / "etc").mkdir(parents=True)
    (path / "etc/passwd").write_text("inside")
    return path


@pytest.fixture
def tree(root: Path) -> Tree:
    return Tree.at(str(root))


def test_absolute_links_stay_inside(root: Path, tree: Tree) -> None:
    (root / "link").symlink_to("/etc/passwd")
    assert tree.read("link") == b"inside"


@pytest.mark.parametrize("target", ["../outside", "../../../../../outside", "/../outside"])
def test_upward_links_stay_inside(root: Path, tree: Tree, target: str) -> None:
    (root / "link").symlink_to(target)
    assert tree.read("link") is None
    assert not tree.exists("link")


def test_a_link_to_a_directory_outside(root: Path, tree: Tree, outside: Path) -> None:
    (root / "up").symlink_to("..")
    tree.write("up/outside", b"new", **OWN)
    assert outside.read_text() == "untouched"
    assert (root / "outside").read_bytes() == b"new"


def test_a_loop_of_links(root: Path, tree: Tree) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    assert not tree.exists("a")
    with pytest.raises(TaskError, match="cannot be read"):
        tree.read("a")
    with pytest.raises(TaskError):
        tree.write("a/file", b"", **OWN)


def test_writing_replaces_a_link_and_not_its_target(root: Path, tree: Tree) -> None:
    (root / "etc/hostname").symlink_to("passwd")
    tree.write("etc/hostname", b"new", **OWN)
    assert (root / "etc/passwd").read_text() == "inside"
    assert not (root / "etc/hostname").is_symlink()


def test_a_hard_link_keeps_its_content(root: Path, tree: Tree) -> None:
    os.link(root / "etc/passwd", root / "other")
    tree.write("etc/passwd", b"new")
    assert (root / "other").read_text() == "inside"
    assert (root / "etc/passwd").read_text() == "new"


def test_mode_and_owner_are_kept(root: Path, tree: Tree) -> None:
    (root / "etc/passwd").chmod(0o640)
    tree.write("etc/passwd", b"new")
    status = (root / "etc/passwd").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_uid == os.getuid()
    assert sorted(os.listdir(root / "etc")) == ["passwd"]


def test_a_given_mode_wins(root: Path, tree: Tree) -> None:
    tree.write("etc/passwd", b"new", mode=0o600)
    assert stat.S_IMODE((root / "etc/passwd").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory"])
def test_what_is_no_regular_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "t"
    root.mkdir()
    if kind == "fifo":
        os.mkfifo(root / "file")
    elif kind == "socket":
        monkeypatch.chdir(root)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("file")
    else:
        (root / "file").mkdir()
    tree = Tree.at(str(root))
    with pytest.raises(TaskError, match=r"a FIFO|a directory|cannot be read"):
        tree.read("file")
    with pytest.raises(TaskError, match=r"a FIFO|a socket|a directory"):
        tree.write("file", b"", **OWN)


def test_a_huge_file_is_refused_unread(root: Path, tree: Tree) -> None:
    with (root / "etc/huge").open("wb") as stream:
        stream.truncate(4 << 30)
    with pytest.raises(TaskError, match=f"allowed are {READ_LIMIT}"):
        tree.read("etc/huge")


def test_a_missing_file_is_none(tree: Tree) -> None:
    assert tree.read("etc/none") is None
    assert tree.read("etc/passwd/none") is None
    assert not tree.remove("none/none")


def test_bytes_that_are_no_text_survive(root: Path, tree: Tree) -> None:
    raw = b"a\xff\xfeb\r\n"
    (root / "etc/passwd").write_bytes(raw)
    tree.write_text("etc/passwd", tree.read_text("etc/passwd") or "")
    assert (root / "etc/passwd").read_bytes() == raw


def test_removing_takes_the_link(root: Path, tree: Tree) -> None:
    (root / "link").symlink_to("etc/passwd")
    assert tree.remove("link")
    assert (root / "etc/passwd").exists()


def test_removing_a_directory_is_an_error(tree: Tree) -> None:
    with pytest.raises(TaskError, match="cannot be removed"):
        tree.remove("etc")


def test_directories_are_made_inside(root: Path, tree: Tree) -> None:
    assert tree.make_directories("a/b", 0o750, **OWN) == ["a", "a/b"]
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o750
    assert tree.make_directories("a/b", 0o700, **OWN) == []


def test_a_dangling_link_is_no_place_for_a_directory(root: Path, tree: Tree, outside: Path) -> None:
    (root / "a").symlink_to("../outside-folder")
    with pytest.raises(TaskError, match="cannot be made"):
        tree.make_directories("a/b", 0o700, **OWN)
    assert not (outside.parent / "outside-folder").exists()


def test_upward_paths_are_refused(tree: Tree) -> None:
    with pytest.raises(TaskError, match="leads upwards"):
        tree.write("etc/../../outside", b"", **OWN)


def test_names_are_bounded(root: Path, tree: Tree) -> None:
    for number in range(5):
        (root / f"etc/{number}").touch()
    assert tree.names("etc") == ["0", "1", "2", "3", "4", "passwd"]
    with pytest.raises(TaskError, match="more than 3 entries"):
        tree.names("etc", limit=3)
    assert tree.names("none") == []

# SPDX-License-Identifier: BSD-2-Clause
"""The commands over two stores of files, as an administrator types them."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from extstorage import apply, cli, gc, publish, specs, stores
from extstorage.cli import image, items, maintenance, server, sizes
from extstorage.cli.store import UnusableStoresError
from extstorage.errors import (
    AlreadyThereError,
    BadNameError,
    BadSizeError,
    BadStoreError,
    BusyError,
    HeldError,
    NoSuchStoreError,
    NoSuchVolumeError,
    NotAnOriginError,
    OtherKindError,
    UnknownOriginError,
    UnreachableStoreError,
)
from extstorage.files_store import FilesStore
from extstorage.fsck import Finding
from extstorage.images import BadPropertyError
from extstorage.names import MEBIBYTE, PAGE
from extstorage.pithos_export import ExportError
from extstorage.plan import CreatePlan
from extstorage.servers import Site
from extstorage.session import Session
from extstorage.sources import UnusableFileError
from extstorage.store import Space, Store
from extstorage.streams import Given
from ganeti_plugin.containers import ImageRefusedError
from ganeti_plugin.errors import StateError

GIB = 1 << 30


class Node:
    """Runs commands; what they print, as text or as the JSON that it is."""

    def __init__(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        self.site = site
        self._capsys = capsys

    def run(self, line: str) -> str:
        options = cli.parser().parse_args(line.split())
        self._capsys.readouterr()
        options.action(options)
        return self._capsys.readouterr().out

    def json(self, line: str) -> Any:
        return json.loads(self.run(f"{line} --json"))

    def stores(self) -> Any:
        """`store list`, also when one can't be used."""
        with contextlib.suppress(StateError):
            return self.json("store list")
        return json.loads(self._capsys.readouterr().out)

    def write(self, volume: str, byte: bytes = b"x") -> None:
        with apply.using_store_of(self.site, volume) as store:
            session = Session(store, volume)
            session.write(memoryview(byte * PAGE), 0)
            session.shutdown()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Node:
    stores = {name: f"files:{tmp_path / name}" for name in ("main", "other")}
    site = Site(stores, "main", getpass.getuser(), run=tmp_path / "run", devices=tmp_path / "devices")
    monkeypatch.setattr(apply, "site", lambda: site)
    found = Node(site, capsys)
    for name in stores:
        found.run(f"store create {name}")
    return found


def names(listed: list[dict[str, Any]]) -> list[str]:
    return [one["name"] for one in listed]


def test_a_volume_is_made_cloned_grown_renamed_and_removed(node: Node) -> None:
    assert node.run("volume create web 1G") == "web: 1.0 GiB\n"
    node.write("web")
    node.run("snapshot create web golden")
    assert node.run("volume clone golden copy") == "copy: 1.0 GiB, a clone of golden\n"
    node.run("volume clone golden large --size 2G")
    assert node.run("volume grow copy 3G") == "copy: 3.0 GiB\n"
    node.run("volume rename large larger")
    listed = {one["name"]: one for one in node.json("volume list")}
    assert {name: one["size"] for name, one in listed.items()} == {"web": GIB, "copy": 3 * GIB, "larger": 2 * GIB}
    assert listed["copy"]["origin"] == "golden"
    assert node.json("volume info copy")["attached"] is False
    node.run("volume remove copy")
    assert names(node.json("volume list")) == ["larger", "web"]


def test_what_is_not_possible_is_one_error_and_changes_nothing(node: Node) -> None:
    node.run("volume create web 1G")
    for line, error in (
        ("volume create web 2G", AlreadyThereError),
        ("volume create web 2G --store other", AlreadyThereError),
        ("volume clone web copy", NotAnOriginError),
        ("volume clone nothing copy", NoSuchVolumeError),
        ("volume grow web 512M", BadSizeError),
        ("volume grow nothing 2G", NoSuchVolumeError),
        ("volume rename web web", AlreadyThereError),
        ("volume rename nothing new", NoSuchVolumeError),
        ("volume remove nothing", NoSuchVolumeError),
        ("volume info web --store other", NoSuchVolumeError),
        ("volume list --store third", NoSuchStoreError),
        ("store create third", NoSuchStoreError),
        ("server restart", server.WhichServersError),
        ("server restart --all web", server.WhichServersError),
        ("server restart web", server.NotRestartedError),
    ):
        with pytest.raises(error):
            node.run(line)
    assert [(one["name"], one["size"]) for one in node.json("volume list")] == [("web", GIB)]


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("4K", 4096), ("20G", 20 * GIB), ("1TiB", 1024 * GIB), ("64MB", 64 * MEBIBYTE)]
)
def test_sizes_are_read_as_they_are_written(text: str, size: int) -> None:
    assert sizes.parse(text) == size


def test_a_size_that_is_too_large_is_told_what_is_not() -> None:
    with pytest.raises(BadSizeError, match="at most .* .64 TiB"):
        sizes.parse("9223372036854775808")


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "G", "1g", "100", "9999999999999999T", "\u0661"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(BadSizeError):
        sizes.parse(text)


def test_what_is_not_there_is_said_of_all_stores_and_of_its_kind(node: Node) -> None:
    node.run("volume create web 1G")
    node.run("snapshot create web golden")
    for line in ("volume info nothing", "image remove nothing", "volume clone nothing new", "fsck nothing"):
        with pytest.raises(NoSuchVolumeError, match="'nothing' in the store main or other"):
            node.run(line)
    with pytest.raises(OtherKindError, match="of another kind: snapshot, not image"):
        node.run("image remove golden")
    plan = CreatePlan("new", GIB, "nothing", "", adopt=False)
    with pytest.raises(UnknownOriginError, match="of the store main or other"):
        apply.create(node.site, plan)
    assert names(node.json("snapshot list")) == ["golden"]


def test_what_an_interrupted_import_keeps_is_told_and_given_up_at_once(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "disk").write_bytes(bytes(MEBIBYTE))
    monkeypatch.setattr("extstorage.intake._Intake.run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        node.run(f"image import a {tmp_path}/disk")
    told = "kept for the next import of the same unchanged source to that name; 'archipelago volume remove import-a'"
    assert told in capsys.readouterr().err
    assert names(node.json("volume list")) == ["import-a", "import.a"]
    node.run("volume remove import-a")
    assert node.json("volume list") == []


def test_the_keys_of_json_are_those_of_the_manual(node: Node, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MEBIBYTE))
    node.run(f"image import a {tmp_path}/disk")
    node.run("volume clone a web")
    (node.site.run / "web").mkdir(parents=True)
    page = (Path(__file__).parents[4] / "docs/man/archipelago.8").read_text().replace("\\-", "-")
    found = re.findall(r"^\.B (.+)\n\.I (.+)$", page.partition("\n.SH JSON\n")[2].partition("\n.SH ")[0], re.MULTILINE)
    assert len(found) > 10
    subjects = {"volume info": "web", "volume holder": "web", "snapshot hash": "a"}
    subjects["snapshot export-pithos"] = f"a {tmp_path}/pithos"
    for command, keys in found:
        line = "image show a" if command == "snapshot show" else f"{command} {subjects.get(command, '')}"
        if command == "fsck":
            assert keys.split(", ") == ["store", *Finding._fields]
        elif command != "image publish":  # which needs a volume's server
            answer = node.json(line)
            assert ", ".join((answer[0] if isinstance(answer, list) else answer).keys()) == keys, command


def test_the_instance_of_a_volume_is_seen_in_the_list(node: Node) -> None:
    for name in ("web", "spare"):
        node.run(f"volume create {name} 1G")
    apply.set_metadata(node.site, "web", "originstname+web1.example.org")
    header, spare, web = node.run("volume list").splitlines()
    assert (header.split()[-1], spare.split()[-1], web.split()[-1]) == ("INSTANCE", "-", "web1.example.org")


def test_a_withdrawn_image_is_seen_in_the_list(node: Node, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MEBIBYTE))
    for name in ("a", "b"):
        node.run(f"image import {name} {tmp_path}/disk")
    node.run("image unshare a")
    header, first, second = node.run("image list").splitlines()
    assert (header.split()[-1], first.split()[-1], second.split()[-1]) == ("SHARED", "no", "yes")


def test_a_directory_with_other_files_is_left_as_it_is(node: Node, tmp_path: Path) -> None:
    (tmp_path / "other/store.json").unlink()
    foreign = tmp_path / "other/letter"
    foreign.write_text("hello")
    for path in (tmp_path / "other").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    (tmp_path / "other/lock").unlink()
    with pytest.raises(BadStoreError, match="something else, such as 'letter'"):
        node.run("store create other")
    assert list((tmp_path / "other").iterdir()) == [foreign]


def test_nobody_is_told_that_a_store_of_unknown_size_is_empty_or_full(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FilesStore, "space", lambda _self: Space(0, 0))
    assert node.run("store list").splitlines()[1].split()[:5] == ["main", "yes", "-", "-", "-"]
    assert node.json("stats")["stores"][0]["free"] is None
    assert "archipelago_store_free{" not in node.run("stats --prometheus")
    assert "archipelago_store_images{" in node.run("stats --prometheus")


def test_things_are_found_in_whatever_store_they_are(node: Node) -> None:
    node.run("volume create here 1G")
    node.run("volume create there 1G --store other")
    node.run("snapshot create there golden")
    node.run("volume clone golden copy")
    assert {one["name"]: one["store"] for one in node.json("volume list")} == {
        "here": "main",
        "copy": "other",
        "there": "other",
    }
    assert names(node.json("volume list --store main")) == ["here"]
    node.run("snapshot remove golden")
    assert node.json("snapshot list") == []


def test_a_store_that_is_gone_hides_no_other(node: Node, tmp_path: Path) -> None:
    node.run("volume create here 1G")
    (tmp_path / "other/store.json").unlink()
    with pytest.raises(items.IncompleteError):
        node.run("volume list")
    rows = {one["name"]: one for one in node.stores()}
    assert rows["main"]["fault"] == ""
    assert rows["other"]["free"] is None
    assert rows["main"].keys() == rows["other"].keys()
    assert "there is no store in" in rows["other"]["fault"]
    assert "store.json is missing (mount what belongs there, or make the store" in rows["other"]["fault"]


def test_a_store_that_is_away_is_in_nobodys_way(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a command needs must answer."""
    monkeypatch.setattr(publish, "LOCKS", tmp_path / "locks")
    (tmp_path / "other/store.json").unlink()
    for line in (
        "volume create web 1G",
        "volume create db 1G --store main",
        "snapshot create web golden",
        "volume clone golden copy",
        "volume clone golden copy2 --store main",
        "volume grow copy 2G --store main",
        "volume rename copy old",
        "snapshot hash golden --store main",
        "image publish web image --as-is --store main",
        "image rename image base",
        "volume remove old",
    ):
        node.run(line)
    assert names(node.json("volume list --store main")) == ["copy2", "db", "web"]
    for line, error in (
        ("volume create more 1G --store other", BadStoreError),
        ("image publish instance image2 --as-is --store main", publish.UnknownSourceError),
        ("image publish instance image2 --as-is", UnreachableStoreError),
    ):
        with pytest.raises(error):
            node.run(line)


def test_that_a_store_is_away_is_said_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **_more: object) -> Store:
        raise UnreachableStoreError(name="rados:pool", reason="no monitor answers")

    monkeypatch.setattr(stores, "open_store", refuse)
    with pytest.raises(UnreachableStoreError) as caught:
        node.run("volume info nothing")
    assert str(caught.value) == "the store 'main' can't be used: no monitor answers"
    with pytest.raises(items.IncompleteError):
        node.run("volume list")
    assert "warning: the store 'main' can't be used: no monitor answers\n" in capsys.readouterr().err
    assert node.stores()[0]["fault"] == "no monitor answers"


def test_programs_find_the_same_keys_whatever_there_is(node: Node, tmp_path: Path) -> None:
    for name in ("web", "broken"):
        node.run(f"volume create {name} 1G")
    node.run("snapshot create web golden")
    (tmp_path / "main/maps/broken/map").write_bytes(b"torn")
    broken, web = node.json("volume list")
    golden, _ = node.json("snapshot list")
    assert web.keys() == broken.keys() == golden.keys()
    assert node.json("volume info web").keys() == node.json("volume info broken").keys()
    assert "shared" not in node.run("volume info web")


def test_what_is_attached_here_is_not_removed_by_mistake(node: Node) -> None:
    node.run("volume create web 1G")
    node.run("snapshot create web golden")
    for name in ("web", "golden"):
        (node.site.run / name).mkdir(parents=True)
    for line in ("volume remove web", "snapshot remove golden"):
        with pytest.raises(items.AttachedError, match="--detach"):
            node.run(line)
        assert "removed" in node.run(f"{line} --detach")


@pytest.mark.parametrize(
    "line",
    [
        *("volume create NAME 1G", "volume clone golden NAME", "volume rename web NAME", "snapshot create web NAME"),
        *("image import NAME /etc/passwd", "image rename i NAME"),
    ],
)
def test_a_name_that_a_publication_would_clean_away_is_refused(node: Node, line: str) -> None:
    node.run("volume create web 1G")
    node.run("snapshot create web golden")
    with pytest.raises(BadNameError, match="unfinished images"):
        node.run(line.replace("NAME", "publish-web"))


def test_a_scrub_of_one_store_does_not_wait_for_another(node: Node, tmp_path: Path) -> None:
    (tmp_path / "main/store.json").unlink()
    with pytest.raises(maintenance.PartlyError, match="main"):
        node.run("scrub")
    node.run("scrub --store other")


@pytest.mark.parametrize(
    ("line", "content", "hint"),
    [
        ("disk", b"QFI\xfb\0\0\0\3", "if it is to be read as one, say --format qcow2"),
        ("disk --format qcow2", b"\x1f\x8b\x08", "if it is packed, say --compression gzip"),
        ("disk", b"\xfd7zXZ\0", "if it is packed, say --compression xz"),
        ("disk --format qcow2", b"", "if it is a raw image, leave out --format"),
        ("disk", b"KDMV", "convert it to raw or qcow2 first"),
        ("disk", b"QED\0" + bytes(253) + b"ustar\0", ""),
    ],
)
def test_what_a_source_may_be_instead_is_told(node: Node, line: str, content: bytes, hint: str, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(content.ljust(MEBIBYTE, b"\0"))
    with pytest.raises(ImageRefusedError) as caught:
        node.run(f"image import a {tmp_path}/{line}")
    assert str(caught.value).partition(" (")[2] == (f"{hint})" if hint else "")
    assert node.json("image list") == node.json("volume list") == []


def test_what_contradicts_itself_is_refused(node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "disk").write_bytes(bytes(MEBIBYTE))
    with pytest.raises(BadPropertyError, match="given more than once"):
        node.run(f"image import a {tmp_path}/disk -p users=root -p USERS=debian")
    with pytest.raises(SystemExit):
        node.run("stats --json --prometheus")
    assert "not allowed with" in capsys.readouterr().err
    assert node.json("image list") == []


def test_what_was_packed_twice_is_told() -> None:
    facts = {"found": ["gzip"]}
    assert image._advice(Given("disk.gz"), facts) == "if it was packed twice, unpack it once"
    assert image._advice(Given("disk"), {}) == ""


def test_a_store_that_can_t_be_used_is_an_error_of_the_list(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other/store.json").unlink()
    with pytest.raises(UnreachableStoreError, match="the store 'other' can't be used: there is no store in"):
        node.run("store list")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["NAME", "main", "other"]
    (tmp_path / "main/store.json").unlink()
    with pytest.raises(UnusableStoresError, match="the stores main, other can't be used"):
        node.run("store list --json")
    printed = capsys.readouterr()
    assert [bool(one["fault"]) for one in json.loads(printed.out)] == [True, True]
    assert printed.err.count("there is no store in") == 2


def test_two_names_of_one_place_are_told(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("main")
    with_rados = {"x": "rados:pool/a", "y": "rados:pool/b", "z": "rados:pool/a?user=somebody", "bad": "nfs:/"}
    table = dict(node.site.stores) | {"old": f"files:{tmp_path}/link", "gone": f"files:{tmp_path}/gone"} | with_rados
    first, second = specs.oddities(table, "main")
    assert f"the stores main and old of the configuration are one place (files:{tmp_path}/main)" in first
    assert "the stores x and z of the configuration are one place (rados:pool/a)" in second
    assert not list(specs.oddities(node.site.stores, "other"))
    assert list(specs.oddities({}, "x")) == ["the setting default_store names 'x', which is not one of the stores"]
    monkeypatch.setattr(apply, "site", lambda: node.site._replace(stores={"main": table["main"], "old": table["old"]}))
    options = cli.parser().parse_args(["store", "list"])
    options.action(options)
    assert capsys.readouterr().err == f"warning: {first}\n"


@pytest.mark.parametrize("line", ["image import i NOTHING.gz", "image import i NOTHING"])
def test_a_file_that_is_not_there_is_one_sentence(node: Node, line: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableFileError, match="No such file"):
        node.run(line.replace("NOTHING", str(tmp_path / "nothing")))
    node.run("volume create web 1G")
    node.run("snapshot create web golden")
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="it is no directory .name a directory.$"):
        node.run(f"snapshot export-pithos golden {tmp_path}/file")
    with pytest.raises(ExportError, match="No such file"):
        node.run(f"snapshot export-pithos golden {tmp_path}/nowhere/pithos")


def test_who_has_a_volume_is_told(node: Node) -> None:
    node.run("volume create web 1G")
    assert node.run("volume holder web") == "web: not open\n"
    with apply.using_store(node.site) as store:
        session = Session(store, "web")
        session.open(True)
        assert "web: open, by node " in node.run("volume holder web")
        with pytest.raises(HeldError):
            node.run("volume rename web new")
        session.shutdown()
    found = node.json("volume holder web")
    assert (found["held"], found["holder"]["node"]) == (False, found["holder"]["node"])
    assert "last by node " in node.run("volume holder web")


def test_garbage_is_collected_in_all_stores(node: Node) -> None:
    for store in ("main", "other"):
        node.run(f"volume create vol-{store} 1G --store {store}")
        node.write(f"vol-{store}")
        node.run(f"snapshot create vol-{store} snap-{store}")
        node.run(f"volume remove vol-{store}")
        node.run(f"snapshot remove snap-{store}")
    assert [report["layers"] for report in node.json("gc --dry-run")] == [1, 1]
    text = node.run("gc")
    assert text.count("1 layers and 0 content blocks removed") == 2
    assert [report["layers"] for report in node.json("gc")] == [0, 0]


@pytest.mark.parametrize("line", ["gc", "fsck"])
def test_work_that_goes_on_in_one_store_keeps_no_other_waiting(
    node: Node, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with apply.using_store(node.site) as store, store.only_one(gc.WORK):
        with pytest.raises(maintenance.PartlyError, match="main"):
            node.run(line)
        printed = capsys.readouterr()
        assert "another gc is running" in printed.err
        assert "0 " in printed.out
        with pytest.raises(BusyError):
            node.run(f"{line} --store main")
        node.run(f"{line} --store other")


def test_damage_is_told_and_is_an_error_until_it_is_repaired(node: Node, tmp_path: Path) -> None:
    node.run("volume create web 1G")
    node.write("web")
    node.run("snapshot create web golden")
    assert node.run("fsck") == "0 findings, 0 repaired\n"
    path = tmp_path / "main/maps/web/map"
    path.write_bytes(b"torn")
    with pytest.raises(maintenance.DamageError, match="1 of 1"):
        node.run("fsck")
    with pytest.raises(maintenance.NothingFreedError):
        node.run("gc")
    assert "[the map before the last change is back" in node.run("fsck --repair web")
    assert node.run("fsck web") == "0 findings, 0 repaired\n"


def test_a_volume_whose_flush_failed_says_so_until_that_is_accepted(node: Node) -> None:
    node.run("volume create web 1G")
    with apply.using_store(node.site) as store:
        session = Session(store, "web")
        session.open(True)
        session._say_lost("Input/output error")
        assert session._lock
        session._lock.release()
    assert node.json("volume info web")["fault"].startswith(
        "what was written to the volume 'web' may be lost: Input/output error"
    )
    assert "a flush failed" in node.run("fsck --repair")
    assert node.json("volume info web")["fault"] == ""


def test_numbers_are_what_is_there(node: Node) -> None:
    node.run("volume create web 1G")
    node.write("web")
    node.run("snapshot create web golden")
    for number in range(3):
        node.run(f"volume clone golden copy{number}")
    (stores := node.json("stats")["stores"]).sort(key=lambda one: one["store"])
    main, other = stores
    assert (main["volumes"], main["snapshots"], main["images"], main["broken"]) == (4, 1, 0, 0)
    assert main["logical"] == 4 * GIB
    assert PAGE <= main["stored"] < MEBIBYTE
    assert main["shared"] == 5.0
    assert (other["volumes"], other["stored"], other["shared"]) == (0, 0, 1.0)
    assert "STORE" in node.run("stats")
    lines = node.run("stats --prometheus").splitlines()
    assert 'archipelago_store_volumes{store="main"} 4' in lines
    assert all(line.startswith(("#", "archipelago_")) for line in lines)

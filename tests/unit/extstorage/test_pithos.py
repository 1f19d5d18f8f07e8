# SPDX-License-Identifier: BSD-2-Clause
"""Files of Pithos as origins, out of every layout and map format; hostile maps are refused; exports are such files."""

from __future__ import annotations

import os
import pwd
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from extstorage import apply, catalog, gc, maps, scrub
from extstorage.content import root_of_map
from extstorage.errors import (
    BadStoreSpecError,
    BrokenError,
    NoSuchVolumeError,
    SmallerThanOriginError,
    UnknownOriginError,
)
from extstorage.files_store import create_store
from extstorage.hashing import hash_snapshot
from extstorage.maps import Source
from extstorage.names import BLOCK, LARGEST, PAGE
from extstorage.pithos import MapRefusedError, NoPithosError, NoSuchMapError, Pithos, parse
from extstorage.pithos_export import ExportError, NotHashedError, export
from extstorage.plan import CreatePlan
from extstorage.progress import untold
from extstorage.references import BadReferenceError, Reference, reference
from extstorage.servers import Site
from extstorage.session import Session
from extstorage.store import Info, Store
from tests.datapath.memory_store import MemoryStore
from tests.unit.extstorage.pithos_files import EMPTY, PithosFiles, hash_of_block, v2_entry
from tests.unit.extstorage.told import Told

Make = Callable[[PithosFiles, bytes], str]


def data_of(size: int) -> bytes:
    """Blocks that are alike, holes, a block with zeros at its end, and an end anywhere."""
    chance = random.Random(size)
    blocks = [chance.randbytes(BLOCK // 4), bytes(0), chance.randbytes(777)]
    data = b"".join(blocks[number * 7 % 5 % 3].ljust(BLOCK, b"\0") for number in range(-(-size // BLOCK)))
    return data[: size - 1] + b"\1"


def _v0(files: PithosFiles, data: bytes) -> str:
    return files.file_v0(data)


def _v1(files: PithosFiles, data: bytes) -> str:
    files.file_v1("old_file", data)
    return "old_file"


def _v2(files: PithosFiles, data: bytes) -> str:
    files.file_v2("snf_file_17", data)
    return "snf_file_17"


@pytest.fixture(params=["files", "memory", "atomic"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "files":
        return create_store(tmp_path / "store")
    return MemoryStore(atomic=request.param == "atomic")


def contents(store: Store, name: str, length: int) -> bytes:
    session = Session(store, name)
    buffer = bytearray(length)
    session.readinto(memoryview(buffer), 0)
    session.shutdown()
    return bytes(buffer)


@pytest.mark.parametrize(("kind", "make"), [("nfs", _v0), ("archip", _v0), ("archip", _v1), ("archip", _v2)])
def test_a_file_is_cloned_and_no_byte_copied(store: Store, tmp_path: Path, kind: str, make: Make) -> None:
    files = PithosFiles(tmp_path / "pithos", filed=kind == "archip")
    data = data_of(6 * BLOCK + 12345)
    wanted = Reference(make(files, data), len(data))
    pithos = Pithos({"other": f"nfs:{tmp_path}/none", "one": f"{kind}:{files.directory}"})
    store.foreign = pithos.layer
    catalog.create_volume(store, "vol", 8 * BLOCK, origin=str(wanted), foreign=lambda: pithos.origin_map(wanted))
    assert list(store.contents()) == []
    assert contents(store, "vol", 8 * BLOCK) == data.ljust(8 * BLOCK, b"\0")
    session = Session(store, "vol")
    session.open(True)
    session.write(memoryview(b"mine"), 10)
    session.snapshot("snap", Info(created=0.0))
    session.shutdown()
    gc.collect(store)
    changed = data[:10] + b"mine" + data[14:]
    assert contents(store, "snap", len(data)) == changed
    # Only what was written is ours, even when it is hashed.
    hash_snapshot(store, "snap", untold)
    assert [digest.hex() for digest, _ in store.contents()] == [hash_of_block(changed[:BLOCK])]
    gc.collect(store)
    assert contents(store, "snap", len(data)) == changed
    assert scrub.scrub(store, lambda _done, _all: None).damage == ()


def test_old_blocks_stay_where_pithos_has_them(tmp_path: Path) -> None:
    """Archipelago's filed finds names of 64 hex digits in the places of Pithos before it."""
    files = PithosFiles(tmp_path, filed=True)
    old = PithosFiles(tmp_path)
    data = data_of(2 * BLOCK)
    names = old.upload(data)
    files.map_v2("snf_file_1", len(data), [v2_entry(name) for name in names])
    pithos = Pithos({"one": f"archip:{tmp_path}"})
    assert pithos.origin_map(Reference("snf_file_1", len(data))).digests.hex() == "".join(names)
    assert pithos.layer(bytes.fromhex(names[0])) is not None
    assert pithos.layer(bytes(32)) is None


def test_a_map_of_two_objects(tmp_path: Path) -> None:
    files = PithosFiles(tmp_path)
    name = hash_of_block(b"x")
    entries = [v2_entry(EMPTY)] * 32768 + [v2_entry(name)]
    files.map_v2("snf_file_1", 32769 * BLOCK - 5, entries)
    found = Pithos({"one": f"nfs:{tmp_path}"}).origin_map
    with pytest.raises(NoSuchMapError):
        found(Reference("snf_file_1", 32769 * BLOCK - 5))
    files = PithosFiles(tmp_path, filed=True)
    files.map_v2("snf_file_1", 32769 * BLOCK - 5, entries)
    volume_map = Pithos({"one": f"archip:{tmp_path}"}).origin_map(Reference("snf_file_1", 32769 * BLOCK - 5))
    assert volume_map.layers(32768) == (Source(bytes.fromhex(name), 0),)
    assert volume_map.layers(32767) == ()
    assert volume_map.size == 32769 * BLOCK


@pytest.mark.parametrize(
    ("origin", "size", "expected"),
    [
        ("pithosmap://snf_file_1/1000", None, Reference("snf_file_1", 1000)),
        (f"pithosmap://{EMPTY}/5", 5, Reference(EMPTY, 5)),
        (EMPTY, 5, Reference(EMPTY, 5)),
        (EMPTY, None, None),
        ("debian-12", 5, Reference("debian-12", 5)),
        ("", None, None),
    ],
)
def test_references(origin: str, size: int | None, expected: Reference | None) -> None:
    assert reference(origin, size) == expected


@pytest.mark.parametrize(
    "origin",
    [
        *("pithosmap://", "pithosmap:///5", "pithosmap://x", "pithosmap://x/", "pithosmap://x/-1", "pithosmap://x/1e3"),
        *("pithosmap://x/0", f"pithosmap://x/{LARGEST + 1}", f"pithosmap://x/{2**63}", "pithosmap://x/\u0663"),
        *("pithosmap://../x/5", "pithosmap://a/b/5", "pithosmap://-x/5", "pithosmap://x\n/5"),
        *(
            f"pithosmap://{'x' * 90}/5",
            "pithosmap://x\0y/5",
            "pithosmap://x/5/",
            "pithosmap://x/ 5",
            "pithosmap://x/" + "9" * 30,
        ),
    ],
)
def test_bad_references(origin: str) -> None:
    with pytest.raises(BadReferenceError):
        reference(origin, None)


def test_a_reference_that_contradicts_itself() -> None:
    with pytest.raises(BadReferenceError, match="origin_size 6"):
        reference("pithosmap://x/5", 6)
    with pytest.raises(BadReferenceError):
        reference(EMPTY, LARGEST + 1)


GOOD = hash_of_block(b"good")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 3}, "version 3"),
        ({"size": BLOCK + 1}, "not of"),
        ({"block_size": 4096}, "4096 bytes"),
        ({"block_size": 0}, "0 bytes"),
        ({"flags": 0}, "can be written"),
        ({"flags": 3}, "deleted"),
        ({"signature": b"AMF_"}, "instead of 32"),
        ({"entries": []}, "too short"),
        ({"entries": [v2_entry(GOOD)[:-1]]}, "too short"),
        ({"entries": [v2_entry(GOOD, 1)]}, "blocks of a volume"),
        ({"entries": [v2_entry("vol_0000000000000001_0000000000000000", 2)]}, "blocks of a volume"),
        ({"entries": [v2_entry(GOOD, 8)]}, "not the name of a block"),
        ({"entries": [v2_entry(GOOD.upper(), 0)]}, "not the name of a block"),
        ({"entries": [v2_entry("../" * 21 + "x", 0)]}, "not the name of a block"),
        ({"entries": [b"\0" + struct.pack("<L", 2**31) + GOOD.encode().ljust(123, b"\0")]}, "not the name of a block"),
        ({"entries": [b"\0" + struct.pack("<L", 64) + GOOD.encode().ljust(123, b"x")]}, "not the name of a block"),
    ],
)
def test_hostile_maps_are_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    files = PithosFiles(tmp_path, filed=True)
    arguments: dict[str, object] = {"size": BLOCK, "entries": [v2_entry(GOOD)]}
    files.map_v2("file", **{**arguments, **changes})  # type: ignore[arg-type]
    with pytest.raises(MapRefusedError, match=reason):
        Pithos({"one": f"archip:{tmp_path}"}).origin_map(Reference("file", BLOCK))


def test_old_maps_of_another_length_or_hash_are_refused(tmp_path: Path) -> None:
    files = PithosFiles(tmp_path)
    name = files.file_v0(data_of(3 * BLOCK))
    pithos = Pithos({"one": f"nfs:{tmp_path}"})
    for size in (1, 2 * BLOCK, 3 * BLOCK + 1, LARGEST):
        with pytest.raises(MapRefusedError, match="instead of"):
            pithos.origin_map(Reference(name, size))
    path = files.path("maps", name)
    path.write_bytes(bytes(32) + path.read_bytes()[32:])
    with pytest.raises(MapRefusedError, match="hash is not its name"):
        pithos.origin_map(Reference(name, 3 * BLOCK))
    files = PithosFiles(tmp_path, filed=True)
    files.file_v1("volume", data_of(BLOCK), writable=True)
    with pytest.raises(MapRefusedError, match="blocks of a volume"):
        Pithos({"one": f"archip:{tmp_path}"}).origin_map(Reference("volume", BLOCK))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    files = PithosFiles(tmp_path)
    path = files.path("maps", EMPTY)
    path.parent.mkdir(parents=True)
    pithos = Pithos({"one": f"nfs:{tmp_path}"})
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)):
        make(path)
        with pytest.raises(BrokenError):
            pithos.origin_map(Reference(EMPTY, BLOCK))
        path.rmdir() if path.is_dir() else path.unlink()


def test_damage_in_pithos_is_found_by_scrub(store: Store, tmp_path: Path) -> None:
    files = PithosFiles(tmp_path / "pithos")
    data = data_of(5 * BLOCK)
    wanted = Reference(files.file_v0(data), len(data))
    pithos = Pithos({"one": f"nfs:{files.directory}"})
    store.foreign = pithos.layer
    catalog.create_volume(store, "vol", 5 * BLOCK, origin=str(wanted), foreign=lambda: pithos.origin_map(wanted))
    name = hash_of_block(data[:BLOCK])
    path = files.path("blocks", name)
    whole = path.read_bytes()
    path.write_bytes(b"!" + whole[1:])
    (damage,) = scrub.scrub(store, lambda _done, _all: None, repair=True).damage
    assert (damage.what, damage.hits, damage.removed) == (f"block {name}", ("vol",), False)
    path.unlink()
    (damage,) = scrub.scrub(store, lambda _done, _all: None).damage
    assert "missing" in damage.reason
    with pytest.raises(BrokenError):
        contents(store, "vol", PAGE)


def test_an_export_is_a_file_of_pithos(store: Store, tmp_path: Path) -> None:
    data = data_of(5 * BLOCK)
    catalog.create_volume(store, "vol", 5 * BLOCK)
    session = Session(store, "vol")
    session.open(True)
    session.write(memoryview(data), 0)
    session.snapshot("snap", Info(created=0.0))
    session.shutdown()
    there = tmp_path / "there"
    with pytest.raises(NotHashedError):
        export(store, "snap", there, untold)
    with pytest.raises(NoSuchVolumeError):
        export(store, "vol", there, untold)
    assert not there.exists()
    root = hash_snapshot(store, "snap", untold)
    told = Told()
    made = export(store, "snap", there, told)
    assert told.percents()[-1] == 100
    # What somebody else would have written, byte by byte, but for zeros at the end of blocks.
    files = PithosFiles(tmp_path / "other")
    assert made == Reference(files.file_v0(data), len(data)) == Reference(root.hex(), len(data))

    def found(directory: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(directory)): path.read_bytes().rstrip(b"\0" if "blocks" in path.parts else b"")
            for path in directory.rglob("*")
            if path.is_file()
        }

    assert found(there) == found(files.directory)
    # It can be cloned elsewhere, and exporting again changes nothing.
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*")}
    assert export(store, "snap", there, told) == made
    assert {path: path.stat().st_mtime_ns for path in there.rglob("*")} == before
    pithos = Pithos({"one": f"nfs:{there}"})
    other = MemoryStore()
    other.foreign = pithos.layer
    catalog.create_volume(other, "clone", 5 * BLOCK, origin=str(made), foreign=lambda: pithos.origin_map(made))
    assert contents(other, "clone", len(data)) == data


def test_a_damaged_block_is_not_exported(tmp_path: Path) -> None:
    """Whoever finds it would believe its name."""
    store = create_store(tmp_path / "store")
    data = data_of(BLOCK)
    digest = bytes.fromhex(hash_of_block(data))
    store.put_content(digest, memoryview(data))
    store.sync_contents()
    store.create("image", maps.from_digests(BLOCK, bytes(16), [digest]), Info(created=0.0, image=True))
    with (tmp_path / "store/content" / digest.hex()[:2] / digest.hex()[2:4] / digest.hex()).open("r+b") as stream:
        stream.write(b"flipped")
    there = tmp_path / "there"
    with pytest.raises(BrokenError, match="its name says"):
        export(store, "image", there, untold)
    assert not [path for path in there.rglob("*") if path.is_file()]


def test_an_export_that_was_interrupted_goes_on(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = PithosFiles(tmp_path / "pithos")
    wanted = Reference(files.file_v0(data_of(5 * BLOCK)), 5 * BLOCK)
    store.foreign = Pithos({"one": f"nfs:{files.directory}"}).layer
    store.create("snap", Pithos({"one": f"nfs:{files.directory}"}).origin_map(wanted), Info(created=0.0))
    there = tmp_path / "there"
    there.mkdir()
    (there / "maps").write_text("in the way")
    with pytest.raises(ExportError, match="can't be written"):
        export(store, "snap", there, untold)
    assert [path for path in there.rglob("*") if path.name.startswith(".")] == []
    (there / "maps").unlink()
    assert export(store, "snap", there, untold) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("/srv", "nfs:srv", "nfs:/a/../b", "archip:", "nfs:/\0", "s3:/x"),
        *("rados:", "rados:maps=a", "rados:blocks=b,maps=a"),
        *("rados:maps=a,blocks=b?key=x", "rados:maps=a,blocks=b?conf=x"),
    ],
)
def test_bad_places(text: str) -> None:
    with pytest.raises(BadStoreSpecError):
        parse(text)


def test_a_place_in_rados() -> None:
    assert parse("rados:maps=maps,blocks=blocks?conf=/a/b&user=pithos").title.startswith("rados:")


def test_from_ganetis_call_to_the_clone(tmp_path: Path) -> None:
    """What the provider does with `origin` and `origin_size`, and what it says when it can't."""
    files = PithosFiles(tmp_path / "pithos")
    data = data_of(BLOCK + 5)
    name = files.file_v0(data)
    create_store(tmp_path / "store")
    table = {"main": f"files:{tmp_path}/store"}
    user = pwd.getpwuid(os.geteuid()).pw_name
    site = Site(table, "main", user, {"one": f"nfs:{files.directory}"}, tmp_path / "run", tmp_path / "devices")
    wanted = Reference(name, len(data))

    def make(volume: str, origin: str, size: int = 2 * BLOCK, at: Site = site) -> None:
        found = reference(origin, len(data))
        apply.create(at, CreatePlan(volume, size, origin, cname="", adopt=False, pithos=found))

    for volume, origin in (("new", str(wanted)), ("old", name), ("new", str(wanted))):
        make(volume, origin)
        with apply.using_store(site) as store:
            assert contents(store, volume, len(data)) == data
            assert store.read_info(volume).origin == origin
    with pytest.raises(SmallerThanOriginError):
        make("small", str(wanted), BLOCK)
    with pytest.raises(NoPithosError):
        make("none", str(wanted), at=site._replace(pithos={}))
    with pytest.raises(NoSuchMapError):
        make("none", f"pithosmap://other/{len(data)}")
    with pytest.raises(UnknownOriginError):
        make("none", "debian")
    # An image of ours that is called as the map is.
    with apply.using_store(site) as store:
        catalog.create_volume(store, "plain", BLOCK)
        session = Session(store, "plain")
        session.open(True)
        session.snapshot(name, Info(created=0.0))
        session.shutdown()
    make("ours", name)
    with apply.using_store(site) as store:
        assert contents(store, "ours", PAGE) == bytes(PAGE)
        assert root_of_map(store.read_map("old")) is not None

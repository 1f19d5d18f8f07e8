# SPDX-License-Identifier: BSD-2-Clause
"""The table of stores: what a line of it means, and which store a volume is looked for in."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from extstorage import apply, catalog, servers, specs, stores
from extstorage.errors import (
    AlreadyThereError,
    BadStoreError,
    BadStoreSpecError,
    NoSuchStoreError,
    NoSuchVolumeError,
    TooLargeForStoreError,
    UnknownOriginError,
    UnreachableStoreError,
    UnreadableStoreError,
    why_unusable,
)
from extstorage.names import BLOCK, LARGEST, PAGE, SECTOR
from extstorage.plan import CreatePlan
from extstorage.servers import Site
from extstorage.session import Session
from extstorage.specs import FilesSpec, RadosSpec
from ganeti_plugin.config import converted
from ganeti_plugin.settings import Archipelago, Setting

MIB = 1 << 20
TREE = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("files:/srv/store", FilesSpec(Path("/srv/store"))),
        ("files:/srv/a b?c", FilesSpec(Path("/srv/a b?c"))),
        ("rados:vms", RadosSpec("vms")),
        ("rados:vms/one", RadosSpec("vms", "one")),
        ("rados:vms?conf=/a/b.conf&user=x", RadosSpec("vms", "", Path("/a/b.conf"), "x")),
        ("rados:vms/one?keyring=/k=1&lease=2.5", RadosSpec("vms", "one", keyring="/k=1", lease=2.5)),
    ],
)
def test_a_place_is_read(text: str, spec: specs.Spec) -> None:
    assert specs.parse(text) == spec
    declared = vars(Archipelago)["stores"]
    assert isinstance(declared, Setting)
    assert converted(declared, {"x": text}) == {"x": text}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("/srv/store", "neither with files: nor with rados:"),
        ("s3:bucket", "neither with files: nor with rados:"),
        ("files:store", "absolute directory"),
        ("files:/a/../b", "absolute directory"),
        ("rados:", "name of a pool"),
        ("rados:a b", "name of a pool"),
        ("rados:a/", "a namespace"),
        ("rados:a/b/c", "a namespace"),
        ("rados:a?key=SECRET", "no option 'key'"),
        ("rados:a?user=", "once and with a value"),
        ("rados:a?user=x&user=y", "once and with a value"),
        ("rados:a?conf=ceph.conf", "absolute path"),
        ("rados:a?lease=0", "at least 1 second"),
        ("rados:a?lease=soon", "at least 1 second"),
    ],
)
def test_a_place_that_is_none_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BadStoreSpecError, match=complaint):
        specs.parse(text)


def test_the_error_of_an_unknown_store_names_those_that_are_there() -> None:
    with pytest.raises(NoSuchStoreError, match="'x'; the configuration has a, b"):
        specs.spec_of({"a": "files:/a", "b": "files:/b"}, "x")


def test_a_place_without_a_store_is_left_as_it_is(tmp_path: Path) -> None:
    """It may be where a file system is not mounted."""
    with pytest.raises(BadStoreError):
        stores.open_store(FilesSpec(tmp_path))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for place, complaint in ((tmp_path, "holds something else"), (tmp_path / "file", "no store can be made")):
        with pytest.raises(BadStoreError, match=complaint):
            stores.open_store(FilesSpec(place), make=True)
    (tmp_path / "file").unlink()
    stores.open_store(FilesSpec(tmp_path), make=True)
    assert stores.open_store(FilesSpec(tmp_path)).names() == []


def test_a_store_that_can_t_be_read_is_told_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the package's own directory, whose store makes itself."""
    (tmp_path / "loop").symlink_to("loop")
    for home in (stores.HOME, tmp_path / "loop"):
        monkeypatch.setattr(stores, "HOME", home)
        with pytest.raises(UnreadableStoreError, match="can't be read: Too many levels"):
            stores.open_store(FilesSpec(tmp_path / "loop"))
    error = PermissionError(errno.EACCES, "Permission denied", "/store")
    assert why_unusable(error) == "/store: Permission denied"


def test_a_volume_is_not_larger_than_a_file_can_be(tmp_path: Path) -> None:
    """Its last pages would fail when the guest writes them: on ext4, a file ends below 16 TiB."""
    store = stores.open_store(FilesSpec(tmp_path), make=True)
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ.
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * BLOCK, limits[1]))
    try:
        catalog.create_volume(store, "fits", 8 * BLOCK)
        for size in (8 * BLOCK + SECTOR, LARGEST):
            with pytest.raises(TooLargeForStoreError, match="keeps no file of that size"):
                catalog.create_volume(store, "large", size)
            with pytest.raises(TooLargeForStoreError, match="make it smaller"):
                session.grow(size)
        session.grow(8 * BLOCK)
        session.write(memoryview(b"x" * PAGE), 8 * BLOCK - PAGE)
        catalog.create_volume(store, "fits", 8 * BLOCK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (store.names(), session.size) == (["fits", "vol"], 8 * BLOCK)
    assert not list(tmp_path.glob("content/new/*"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # be nobody else: the store's user does not exist here
    table = {name: f"files:{tmp_path}/{name}" for name in ("main", "fast", "slow")}
    found = Site(table, "main", "nobody", run=tmp_path / "run", devices=tmp_path / "devices")
    for name in table:
        stores.open_store(specs.spec_of(table, name), make=True)
    return found


def create(site: Site, name: str, store: str = "", origin: str = "") -> None:
    apply.create(site, CreatePlan(name, 64 * MIB, origin, f"c-{name}", adopt=False, store=store))


def where(site: Site) -> Mapping[str, list[str]]:
    found = {}
    for name in site.stores:
        with apply.using_store(site, name) as store:
            found[name] = store.names()
    return found


def test_a_volume_is_made_where_it_shall_be_and_found_wherever_it_is(site: Site) -> None:
    create(site, "a")
    create(site, "b", "slow")
    assert where(site) == {"main": ["a"], "fast": [], "slow": ["b"]}
    assert apply.find(site, "b", "fast") == "slow"
    assert apply.find(site, "b", "no such store") == "slow"
    assert apply.find(site, "c") == ""
    with pytest.raises(NoSuchVolumeError, match="main or fast or slow"):
        apply.verify(site, "c")
    with pytest.raises(NoSuchStoreError):
        create(site, "c", "other")
    apply.remove(site, "b", "main")
    apply.remove(site, "b", "main")
    assert where(site)["slow"] == []


def test_the_store_that_serves_a_volume_is_asked_first(site: Site) -> None:
    create(site, "a", "main")
    create(site, "a", "slow")
    servers.prepare_directory(site, "a", "slow")
    assert apply.find(site, "a", "main") == "slow"
    (site.run / "a" / "store").write_text("../x\n")
    assert apply.find(site, "a") == "main"


def test_a_clone_is_made_beside_its_origin(site: Site) -> None:
    create(site, "a", "slow")
    with apply.using_store(site, "slow") as store:
        store.write_map("a", store.read_map("a")._replace(read_only=True))
    create(site, "b", origin="a")
    assert where(site)["slow"] == ["a", "b"]
    with pytest.raises(UnknownOriginError):
        create(site, "c", "main", origin="a")


def test_what_may_be_in_a_store_that_cannot_be_asked_is_neither_missing_nor_removed(site: Site, tmp_path: Path) -> None:
    create(site, "a", "fast")
    create(site, "b", "slow")
    (tmp_path / "fast").rename(tmp_path / "away")
    assert apply.find(site, "b", "fast") == "slow"
    apply.remove(site, "b")
    for action in (apply.remove, apply.verify):
        with pytest.raises(UnreachableStoreError, match="'fast'"):
            action(site, "a")
    (tmp_path / "away").rename(tmp_path / "fast")
    apply.remove(site, "a")
    assert where(site)["fast"] == []


def test_reuse_finds_the_data_in_any_store(site: Site) -> None:
    create(site, "a", "slow")
    apply.create(site, CreatePlan("b", 64 * MIB, "", "c-a", adopt=True))
    apply.create(site, CreatePlan("b", 64 * MIB, "", "c-a", adopt=True))
    assert where(site)["slow"] == ["b"]
    with pytest.raises(AlreadyThereError, match="not 33554432"):
        apply.create(site, CreatePlan("c", 32 * MIB, "", "c-a", adopt=True))


def test_reuse_does_not_guess(site: Site) -> None:
    create(site, "a", "main")
    apply.create(site, CreatePlan("b", 64 * MIB, "", "c-a", adopt=False, store="fast"))
    with pytest.raises(apply.AmbiguousReuseError, match="a and b"):
        apply.create(site, CreatePlan("c", 64 * MIB, "", "c-a", adopt=True))
    with pytest.raises(apply.NoDataToReuseError):
        apply.create(site, CreatePlan("c", 64 * MIB, "", "", adopt=True))
    assert where(site) == {"main": ["a"], "fast": ["b"], "slow": []}


def test_a_clone_imports_nothing_that_takes_long(tmp_path: Path) -> None:
    """Each of these would be a tenth of its time."""
    code = (
        "import sys; from extstorage import actions, apply, plan, files_store, rados_locks, rados_errors\n"
        "slow = {'subprocess', 'socket', 'shutil', 'secrets', 'hashlib', 'uuid', 'random', 'logging', 'dataclasses'}\n"
        "sys.exit(' '.join(slow & set(sys.modules)) or 0)"
    )
    stub = tmp_path / "rados.py"
    stub.write_text("class Ioctx: pass\nRados = ReadOp = WriteOp = Ioctx\nError = ObjectNotFound = OSError\n")
    done = subprocess.run(
        [sys.executable, "-s", "-c", code], env={"PYTHONPATH": f"{TREE}:{tmp_path}"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")

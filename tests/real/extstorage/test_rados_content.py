# SPDX-License-Identifier: BSD-2-Clause
"""Content in a real Ceph: imports, hashing, scrubbing, and files of Pithos in pools."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from extstorage import catalog, gc, intake, sources
from extstorage.content import root_of_map
from extstorage.hashing import hash_snapshot
from extstorage.images import import_from
from extstorage.maps import VolumeMap
from extstorage.names import BLOCK
from extstorage.pithos import Pithos
from extstorage.progress import untold
from extstorage.rados_pool import Change, Client
from extstorage.rados_store import RadosStore
from extstorage.references import Reference
from extstorage.scrub import scrub
from extstorage.session import Session
from extstorage.specs import RadosSpec
from extstorage.store import Info
from tests.real.extstorage.ceph import POOL, USER, Ceph
from tests.unit.extstorage.pithos_files import PithosFiles, v2_entry

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BATCH", 4)
    monkeypatch.setattr(intake, "CHECKPOINT", 4 * BLOCK)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as stream:
        stream.truncate(12 * BLOCK + 512)
        for number in (0, 1, 2, 5, 6, 7, 8, 12):
            stream.seek(number * BLOCK)
            stream.write(random.Random(number % 5).randbytes(512 if number == 12 else 100_000))
    return path


def take(store: RadosStore, name: str, path: Path) -> None:
    with sources.opened(path, "raw") as source:
        import_from(store, name, source, {}, untold)


def contents(store: RadosStore, name: str) -> bytes:
    session = Session(store, name)
    buffer = bytearray(session.size)
    session.readinto(memoryview(buffer), 0)
    session.shutdown()
    return bytes(buffer)


def test_import_hash_and_scrub(rados_store: RadosStore, disk: Path, tmp_path: Path) -> None:
    store = rados_store
    take(store, "image", disk)
    data = disk.read_bytes()
    assert contents(store, "image") == data
    before = dict(store.contents())
    # Blocks 0 and 5, 1 and 6, 2 and 7 are alike.
    assert len(before) == 5
    catalog.create_volume(store, "vol", len(data))
    session = Session(store, "vol")
    session.open(True)
    session.write(memoryview(data), 0)
    session.snapshot("snap", Info(created=0.0, origin="vol"))
    session.shutdown()
    assert hash_snapshot(store, "snap", untold) == root_of_map(store.read_map("image"))
    assert dict(store.contents()).keys() == before.keys()
    catalog.remove(store, "vol")
    gc.collect(store)
    assert list(store.layers()) == []
    assert contents(store, "snap") == data
    report = scrub(store, lambda _done, _all: None)
    assert (report.damage, report.blocks) == ((), 5)


def test_an_import_that_was_killed_goes_on_and_damage_is_found(
    rados_store: RadosStore, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = rados_store
    put = RadosStore.put_content
    calls: list[bytes] = []

    def dying(self: RadosStore, digest: bytes, data: memoryview) -> bool:
        calls.append(digest)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return put(self, digest, data)

    with monkeypatch.context() as patch:
        patch.setattr(RadosStore, "put_content", dying)
        with pytest.raises(KeyboardInterrupt):
            take(store, "image", disk)
    assert store.names() == ["import-image", "import.image"]
    gc.collect(store)
    assert scrub(store, lambda _done, _all: None).damage == ()
    take(store, "image", disk)
    assert store.names() == ["image"]
    assert contents(store, "image") == disk.read_bytes()
    spoilt = min(digest for digest, _ in store.contents())
    client = Client(store._client.place, 10.0)
    client.objects.apply(f"content.{spoilt.hex()}", Change().write(1000, b"flipped"))
    client.close()
    (damage,) = scrub(store, lambda _done, _all: None, repair=True).damage
    assert (damage.what, damage.hits, damage.removed) == (f"block {spoilt.hex()}", ("image",), True)
    take(store, "again", disk)
    assert scrub(store, lambda _done, _all: None).damage == ()
    assert contents(store, "image") == disk.read_bytes()


class PithosPools(PithosFiles):
    """The same objects in a pool: each is called by its name alone."""

    def __init__(self, spec: RadosSpec) -> None:
        super().__init__(Path())
        self._client = Client(spec, 10.0)

    def put(self, kind: str, name: str, data: bytes) -> None:
        self._client.objects.apply(name, Change().write_full(data))

    def close(self) -> None:
        self._client.close()


def _same(found: VolumeMap) -> VolumeMap:
    return found


@pytest.fixture
def pools(ceph: Ceph) -> Iterator[PithosPools]:
    made = PithosPools(RadosSpec(POOL, conf=ceph.conf, user=USER, keyring=str(ceph.user_keyring)))
    yield made
    made.close()


def test_files_of_pithos_in_pools(rados_store: RadosStore, ceph: Ceph, pools: PithosPools, disk: Path) -> None:
    """Maps and blocks may be in one pool or two; the tests' user has rights in one."""
    store = rados_store
    data = disk.read_bytes()
    options = f"conf={ceph.conf}&user={USER}&keyring={ceph.user_keyring}"
    pithos = Pithos({"one": f"rados:maps={POOL},blocks={POOL}?{options}"})
    store.foreign = pithos.layer
    pools.map_v2("snf_file_9", len(data), [v2_entry(name) for name in pools.upload(data)])
    for name, wanted in (("old", pools.file_v0(data)), ("new", "snf_file_9")):
        found = pithos.origin_map(Reference(wanted, len(data)))
        catalog.create_volume(store, name, 16 * BLOCK, origin="pithos", foreign=functools.partial(_same, found))
        assert contents(store, name) == data.ljust(16 * BLOCK, b"\0")
    assert list(store.contents()) == []
    assert scrub(store, lambda _done, _all: None).damage == ()
    # What is ours is read first.
    take(store, "image", disk)
    store.foreign = None
    assert contents(store, "old") == data.ljust(16 * BLOCK, b"\0")

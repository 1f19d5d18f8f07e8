# SPDX-License-Identifier: BSD-2-Clause
"""A client dies before each of its changes in turn: what is there is whole, and the same call done again succeeds."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extstorage import catalog, gc, maps, rados_bodies, specs
from extstorage.errors import BadStoreError, BrokenError, FullStoreError, UnreachableStoreError
from extstorage.names import BLOCK, PAGE
from extstorage.rados_layers import PAGES, data_key, encode_pages
from extstorage.rados_locks import Identity, machine
from extstorage.rados_pool import Change, Client, Objects
from extstorage.rados_store import RadosStore, create_store, open_store
from extstorage.session import Session
from extstorage.specs import RadosSpec
from extstorage.store import Info
from tests.real.extstorage.ceph import Ceph

A, B = (memoryview(letter * PAGE) for letter in (b"a", b"b"))

CHANGES = ("apply", "apply_versioned", "write")

#: What an empty store has.
USUAL = {"store", "store.lock", "names", "bodies", "layers", "only.gc"}


class Killed(BaseException):
    """As if the process were no more: nothing catches it."""


class Doomed:
    """Dies before its n-th change."""

    def __init__(self, spec: RadosSpec, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait()
        self.store = open_store(spec, identity=Identity("doomed", machine(), gone.pid, 1))
        self.left = count
        objects = self.store._objects
        for name in CHANGES:
            monkeypatch.setattr(objects, name, self._counting(objects, name), raising=True)

    def _counting(self, objects: Objects, name: str) -> Callable[..., Any]:
        real = getattr(objects, name)

        def call(*arguments: Any, **more: Any) -> Any:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return real(*arguments, **more)

        return call


def read(store: RadosStore, name: str, offset: int = 0) -> bytes:
    session = Session(store, name)
    buffer = bytearray(PAGE)
    session.readinto(memoryview(buffer), offset)
    session.shutdown()
    return bytes(buffer)


def prepare(store: RadosStore) -> None:
    """A volume with `a` in its first page, and a snapshot of that."""
    catalog.create_volume(store, "vol", 3 * BLOCK, cname="disk")
    session = Session(store, "vol")
    session.write(A, 0)
    session.snapshot("snap", Info(created=0.0))
    session.shutdown()


def create(store: RadosStore) -> None:
    catalog.create_volume(store, "new", 3 * BLOCK, origin="snap")


def snapshot(store: RadosStore) -> None:
    session = Session(store, "vol")
    session.write(B, BLOCK)
    if not store.exists("second"):
        session.snapshot("second", Info(created=0.0))
    session.shutdown()


def rename(store: RadosStore) -> None:
    if not store.exists("new"):
        catalog.adopt(store, "vol", "new", 3 * BLOCK)


def remove(store: RadosStore) -> None:
    catalog.remove(store, "snap")
    catalog.remove(store, "vol")


def grow(store: RadosStore) -> None:
    session = Session(store, "vol")
    session.grow(4 * BLOCK)
    session.shutdown()


def collect(store: RadosStore) -> None:
    catalog.remove(store, "vol")
    gc.collect(store)


def check_everything(store: RadosStore) -> None:
    for name in store.names():
        store.read_map(name)
        store.read_info(name)
        assert read(store, name) == bytes(A)
        if name == "second":
            assert read(store, name, BLOCK) == bytes(B)
    owners = [store.read_map(name).owner for name in store.names() if not store.read_map(name).read_only]
    assert len(set(owners)) == len(owners), "two volumes would write the same layer"


def remove_everything(store: RadosStore) -> None:
    for name in store.names():
        catalog.remove(store, name)
    gc.collect(store)
    left = set(store._objects.keys()) - USUAL
    assert left == set()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of a few bytes already have bodies elsewhere, in parts."""
    monkeypatch.setattr(rados_bodies, "INLINE", 0)
    monkeypatch.setattr(rados_bodies, "PART", 20)


def deaths(spec: RadosSpec, action: Callable[[RadosStore], None]) -> Iterator[RadosStore]:
    """Prepares, and has a client die in the action, at one change after the other; yields after each death."""
    count = 0
    while True:
        store = create_store(spec)
        prepare(store)
        with pytest.MonkeyPatch.context() as patch:
            doomed = Doomed(spec, count, patch)
            try:
                action(doomed.store)
                ended = True
            except Killed:
                ended = False
            doomed.left = 0
            doomed.store._locks._ended.set()
        # The dead leave their locks, but no connection.
        doomed.store._client.close()
        yield store
        remove_everything(store)
        store.close()
        if ended:
            return
        count += 1
        assert count < 100


@pytest.mark.timeout(120)
@pytest.mark.parametrize("action", [create, snapshot, rename, remove, grow, collect])
def test_whenever_a_client_dies(new_spec: Callable[..., RadosSpec], action: Callable[[RadosStore], None]) -> None:
    rounds = 0
    for store in deaths(new_spec(), action):
        with store.locked():
            check_everything(store)
        action(store)
        check_everything(store)
        rounds += 1
    assert rounds > 3


@pytest.mark.usefixtures("small_parts")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("action", [create, snapshot, rename, remove, collect])
def test_whenever_a_client_dies_with_a_large_map(
    new_spec: Callable[..., RadosSpec], action: Callable[[RadosStore], None]
) -> None:
    for store in deaths(new_spec(), action):
        with store.locked():
            check_everything(store)
        action(store)
        check_everything(store)


def test_a_map_in_many_parts(rados_store: RadosStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced while somebody reads it, it is read whole, old or new."""
    monkeypatch.setattr("extstorage.rados_bodies.INLINE", 0)
    monkeypatch.setattr("extstorage.rados_bodies.PART", 64)
    store = rados_store
    digests = [bytes([number]) * 32 for number in range(40)]
    first = maps.from_digests(len(digests) * BLOCK, bytes(16), digests)
    store.create("image", first, Info(created=0.0))
    second = maps.from_digests(len(digests) * BLOCK, bytes(16), digests[::-1])
    parts = len([key for key in store._objects.keys() if key.startswith("body.")])  # noqa: SIM118 - not a mapping
    assert parts > 10
    real = Objects.read
    changed: list[str] = []

    def read_late(self: Objects, key: str, length: int, offset: int = 0) -> bytes:
        if key.startswith("body.") and not changed:
            changed.append(key)
            store.write_map("image", second)
        return real(self, key, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "read", read_late)
        assert store.read_map("image") == second
    catalog.remove(store, "image")
    remove_everything(store)


def bodies(store: RadosStore) -> set[str]:
    return {key for key in store._objects.keys() if key.startswith("body.")}  # noqa: SIM118 - not a mapping


@pytest.mark.usefixtures("small_parts")
def test_clones_and_snapshots_share_a_large_body(rados_store: RadosStore) -> None:
    """And it goes when nobody names it any more, not before; with a damaged head nobody knows."""
    store = rados_store
    prepare(store)
    before = bodies(store)
    catalog.create_volume(store, "clone", 8 * BLOCK, origin="snap")
    catalog.create_volume(store, "other", 9 * BLOCK, origin="snap")
    assert bodies(store) == before
    whole = store.read_map("snap")
    for name, blocks in (("clone", 8), ("other", 9)):
        found = store.read_map(name)
        assert (found.sources, found.entries, found.blocks) == (whole.sources, whole.entries, blocks)
        assert store.read_heads(name).sources == whole.sources
        assert read(store, name) == bytes(A)
    grow(store)
    with store.locked():
        assert store.tidy() == 0
    for name in ("vol", "snap", "clone"):
        catalog.remove(store, name)
        gc.collect(store)
        assert read(store, "other") == bytes(A)
    session = Session(store, "other")
    session.write(memoryview(bytes(B)), 0)
    session.snapshot("late", Info(created=0.0))
    session.shutdown()
    assert read(store, "late") == bytes(B)
    head = store._objects.read("head.late", 1000)
    store._objects.apply("head.late", Change().write_full(head[:8] + bytes([head[8] ^ 1]) + head[9:]))
    with pytest.raises(BrokenError, match=r"head\.late"):
        store.read_heads("late")
    left = bodies(store)
    with store.locked():
        assert store.tidy() == 0
    assert bodies(store) == left
    remove_everything(store)


def test_damage_is_named(rados_store: RadosStore) -> None:
    """A block that is not there does not read as zeros, and a record of pages is not believed on another object."""
    prepare(rados_store)
    objects = rados_store._objects
    [source] = rados_store.layers()
    key = data_key(source, 0)
    objects.apply(key, Change().set_attribute(PAGES, encode_pages("data.of.another", 1, 0)))
    with pytest.raises(BrokenError, match="damaged"):
        read(rados_store, "snap")
    objects.apply(key, Change().set_attribute(PAGES, encode_pages(key, 1, 0)))
    assert read(rados_store, "snap") == bytes(A)
    objects.remove(key)
    with pytest.raises(BrokenError, match="block 0 .* missing"):
        read(rados_store, "snap")
    objects.remove("head.snap")
    assert rados_store.names() == ["vol"]
    assert rados_store.tidy() == 1
    objects.apply("head.vol", Change().write_full(b"nonsense"))
    with pytest.raises(BrokenError, match=r"head\.vol"):
        read(rados_store, "vol")
    catalog.remove(rados_store, "vol")
    remove_everything(rados_store)


def test_foreign_objects_are_no_store(new_spec: Callable[..., RadosSpec]) -> None:
    spec = new_spec()
    with pytest.raises(BadStoreError, match="missing"):
        open_store(spec)
    client = Client(spec, 10)
    client.objects.apply("precious", Change().write_full(b"data"))
    with pytest.raises(BadStoreError, match="precious"):
        create_store(spec)
    for header in (b"", b"[1]", b'{"kind": "snf-archipelago", "version": 99}', b'{"kind": "other", "version": 1}'):
        client.objects.apply("store", Change().write_full(header))
        for function in (create_store, open_store):
            with pytest.raises(BadStoreError):
                function(spec)
    assert set(client.objects.keys()) == {"precious", "store"}
    client.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pool": "nowhere"}, "no pool 'nowhere'"),
        ({"conf": Path("/nowhere/ceph.conf")}, "/nowhere/ceph.conf can't be read"),
        ({"user": "nobody"}, "no answer|refuses|no key"),
        ({"pool": "foreign"}, "lacks rights|refuses|could not"),
    ],
)
def test_a_place_that_can_not_be_used(
    ceph: Ceph,
    new_spec: Callable[..., RadosSpec],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setattr("extstorage.rados_pool.CONNECT_TIMEOUT", 2)
    if change.get("pool") == "foreign":
        ceph.make_pool("foreign")
    with pytest.raises(UnreachableStoreError, match=reason):
        create_store(new_spec()._replace(**change))


def test_an_osd_that_is_stopped_and_goes_on(ceph: Ceph, rados_store: RadosStore) -> None:
    """A server waits as long as it takes; a command gives up, and says that it does not know."""
    catalog.create_volume(rados_store, "vol", 2 * BLOCK)
    session = Session(rados_store, "vol")
    session.open(True)
    impatient = open_store(rados_store._spec, deadline=1)
    written = []

    def write() -> None:
        for page in range(200):
            session.write(memoryview(bytes([page % 255 + 1]) * PAGE), page * PAGE)
            written.append(page)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        ceph.suspend()
        with pytest.raises(UnreachableStoreError, match="not known"):
            impatient.write_info("vol", Info(created=1.0))
        count = len(written)
        time.sleep(0.5)
        assert len(written) == count
    finally:
        ceph.go_on()
    writer.join(40)
    assert len(written) == 200
    session.shutdown()
    for page in range(200):
        assert read(rados_store, "vol", page * PAGE) == bytes([page % 255 + 1]) * PAGE
    impatient.close()


def test_a_full_store(tmp_path: Path) -> None:
    """Writes fail, and what frees space works; then writes work again. It needs a Ceph that can be filled."""
    small = Ceph(tmp_path / "ceph", size=64 << 20)
    try:
        spec = specs.parse(small.spec("full"))
        assert isinstance(spec, RadosSpec)
        store = create_store(spec)
        catalog.create_volume(store, "never-opened", BLOCK)
        catalog.create_volume(store, "vol", 40 * BLOCK)
        session = Session(store, "vol")
        data = memoryview(bytes(range(1, 256)) * (BLOCK // 255 + 1))[:BLOCK]
        for index in range(15):
            session.write(data, index * BLOCK)
        pages = iter(range(1024))
        eventually(lambda: fails(lambda: session.write(A, 20 * BLOCK + next(pages) * PAGE), FullStoreError))
        session.discard(0, BLOCK)
        assert fails(lambda: session.snapshot("snap", Info(created=0.0)), FullStoreError)
        assert fails(lambda: catalog.create_volume(store, "new", BLOCK), FullStoreError)
        buffer = bytearray(BLOCK)
        session.readinto(memoryview(buffer), BLOCK)
        assert buffer == data
        session.shutdown()
        catalog.remove(store, "never-opened")
        catalog.remove(store, "vol")
        eventually(lambda: not fails(lambda: catalog.create_volume(store, "new", BLOCK), FullStoreError))
        remove_everything(store)
        store.close()
    finally:
        small.stop()


def fails(function: Callable[[], object], kind: type[Exception]) -> bool:
    try:
        function()
    except kind:
        return True
    return False


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)

# SPDX-License-Identifier: BSD-2-Clause
"""Damaged and made-up input: one sentence of ours, or it works; never a traceback, and never more memory than there is.

Damage with a right checksum does not happen by itself. It is tried all the same, since a checksum proves no good will.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import struct
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extstorage import catalog, control, gc, maps, specs
from extstorage.errors import BrokenError
from extstorage.files_store import create_store, open_store
from extstorage.maps import CONTENT, VolumeMap
from extstorage.names import BLOCK, LARGEST, PAGE, SECTOR, check_name, check_size
from extstorage.session import Session
from extstorage.store import Info, Store, decode_info, encode_info
from ganeti_plugin.errors import Error
from tests.datapath.memory_store import MemoryStore

HEADER = struct.Struct("<8sIIQ16sQIIIIII")
NUMBERS = (0, 1, 2, 3, 4, 255, BLOCK - 1, BLOCK, LARGEST, LARGEST + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
HUGE = (*NUMBERS, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TIMES = 400
BOMB = zlib.compress(bytes(16 << 20))


def sample(chance: random.Random) -> VolumeMap:
    found = maps.empty(5 * BLOCK + SECTOR, chance.randbytes(16))
    for _ in range(chance.randrange(4)):
        found = maps.freeze(found, {chance.randrange(6): chance.getrandbits(1024) | 1})
    if chance.random() < 0.5:
        found = maps.with_content(found, {chance.randrange(6): chance.randbytes(32)})
    return found


def spoil(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, lost, repeated, or others altogether."""
    spoilt = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 20))):
        kind = chance.randrange(6)
        at = chance.randrange(len(spoilt) + 1)
        if kind == 0 and at < len(spoilt):
            spoilt[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del spoilt[at : at + chance.choice((1, 4, 100, len(spoilt)))]
        elif kind == 2:
            spoilt[at:at] = chance.randbytes(chance.choice((1, 4, 64)))
        elif kind == 3:
            spoilt[at:at] = spoilt[at : at + 64]
        elif kind == 4:
            spoilt[at : at + 8] = struct.pack("<Q", chance.choice(HUGE))
        else:
            spoilt[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
    return bytes(spoilt)


def make_up(one: VolumeMap, chance: random.Random) -> bytes:
    """A map whose checksum is right, but not its numbers."""
    data = maps.encode(one)
    fields = list(HEADER.unpack_from(data))
    body = data[HEADER.size :]
    kind = chance.randrange(4)
    if kind == 0:
        field = chance.choice((1, 2, 3, 5, 6, 7, 8, 9))
        fields[field] = chance.choice(HUGE) & ((1 << (64 if field in (3, 5) else 32)) - 1)
    elif kind == 1:
        entries = one.entries[:] or array("I", bytes(16))
        for _ in range(chance.randint(1, 8)):
            entries[chance.randrange(len(entries))] = chance.choice(NUMBERS) & 0xFFFFFFFF | chance.choice((0, CONTENT))
        return maps.encode(one._replace(entries=entries))
    elif kind == 2:
        body = spoil(body, chance)
    else:
        # Entries that unpack to a thousand times of what is said.
        table = len(one.sources) * 24
        packed = BOMB
        fields[9] = len(packed)
        body = body[:table] + packed + one.digests
    fields[10:] = zlib.crc32(body), 0
    fields[11] = zlib.crc32(HEADER.pack(*fields))
    return HEADER.pack(*fields) + body


def allowed(work: Callable[[], object]) -> bool:
    """Whether it worked; what it says otherwise is one sentence of ours."""
    try:
        work()
    except Error as error:
        text = str(error)
    else:
        return True
    assert text
    assert "\n" not in text
    return False


def use_map(one: VolumeMap) -> None:
    """Everything that is done with maps."""
    for index in range(min(one.blocks, 8)):
        one.layers(index)
        one.depth(index)
    maps.freeze(one, {0: 3})
    maps.grow(one, one.size + BLOCK)
    maps.with_content(one, {0: bytes(32)})
    maps.encode(maps.as_snapshot(maps.clone(one, one.size, bytes(16))))


@pytest.mark.parametrize("mutation", [lambda one, chance: spoil(maps.encode(one), chance), make_up])
def test_maps(seeds: list[int], mutation: Callable[[VolumeMap, random.Random], bytes]) -> None:
    worked = 0
    for seed in seeds:
        chance = random.Random(seed)
        for _ in range(TIMES):
            data = mutation(sample(chance), chance)
            worked += allowed(lambda data=data: use_map(maps.decode(data, "x")))  # type: ignore[misc]
            allowed(lambda data=data: maps.decode_heads(iter_reader(data), "x"))  # type: ignore[misc]
    assert worked < TIMES * len(seeds)


def iter_reader(data: bytes) -> Callable[[int], bytes]:
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        position += length
        return data[position - length : position]

    return read


def test_a_made_up_map_in_a_store(seeds: list[int]) -> None:
    """Reading, writing, snapshots and collection with what the decoder accepts."""
    for seed in seeds:
        chance = random.Random(seed)
        for _ in range(TIMES // 4):
            store = MemoryStore()
            catalog.create_volume(store, "vol", 5 * BLOCK + SECTOR)
            store._maps["vol"] = make_up(sample(chance), chance)
            allowed(lambda store=store: use_volume(store, "vol"))  # type: ignore[misc]
            allowed(lambda store=store: gc.collect(store))  # type: ignore[misc]
            catalog.items(store)
            store.drop_locks()
            catalog.remove(store, "vol")


def use_volume(store: Store, name: str) -> None:
    session = Session(store, name)
    if session.size > 64 << 20:
        return
    try:
        # Each alone: a block that can't be read must not be in the way of the others.
        works: list[Callable[[], object]] = [
            lambda: session.open(True),
            *(partial(session.readinto, memoryview(bytearray(SECTOR)), at) for at in range(0, session.size, BLOCK)),
            lambda: session.write(memoryview(b"1" * 700)[: session.size - session.size // 9], session.size // 9),
            lambda: session.extents(0, session.size),
            lambda: session.zero(0, min(session.size, BLOCK)),
            session.flush,
            lambda: session.snapshot("snap", Info(created=0.0)),
            lambda: session.grow(session.size + SECTOR),
        ]
        for work in works:
            allowed(work)
    finally:
        allowed(session.shutdown)


def whole_store(directory: Path) -> None:
    store = create_store(directory)
    catalog.create_volume(store, "vol", 2 * BLOCK)
    session = Session(store, "vol")
    session.write(memoryview(b"x" * 3 * PAGE), BLOCK - PAGE)
    session.snapshot("image", Info(created=1.0, image=True, properties={"OSFAMILY": "linux"}))
    session.write(memoryview(b"y" * PAGE), 0)
    session.shutdown()
    catalog.create_volume(store, "clone", 3 * BLOCK, origin="image")


JSON = ("null", "[]", "{}", "3", '"x"', "[" * 5000, '{"created": ' + "[" * 3000, "\xff", "NaN", '{"created": null}')


def spoil_file(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    if path.suffix == ".json" and chance.random() < 0.6:
        facts = json.loads(data)["facts"]
        facts[chance.choice(sorted(facts))] = chance.choice(
            (None, 1, -1, 1e308, [], {}, "x", ["x"], {"x": 1}, True, 2**70)
        )
        checksum = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
        data = (
            json.dumps({"facts": facts, "crc32": checksum}).encode()
            if chance.random() < 0.7
            else chance.choice(JSON).encode("latin-1")
        )
    else:
        data = spoil(data, chance)
    path.write_bytes(data)


def test_damaged_files(tmp_path: Path, seeds: list[int]) -> None:
    """Any file of a store: what is damaged is named, the rest works, and everything can be removed."""
    whole = tmp_path / "whole"
    whole_store(whole)
    for seed in seeds:
        chance = random.Random(seed)
        for number in range(TIMES // 4):
            directory = tmp_path / "damaged"
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(whole, directory)
            paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "store.json")
            path = chance.choice(paths)
            spoil_file(path, chance)
            try:
                use_store(directory)
            except Exception as error:
                raise AssertionError(f"--seed={seed}, damage {number}, {path}: {error!r}") from error


def use_store(directory: Path) -> None:
    store = open_store(directory)
    for item in catalog.items(store):
        assert item.kind != "broken" or item.fault
    for name in ("vol", "image", "clone"):
        allowed(lambda name=name: use_volume(store, name))  # type: ignore[misc]
        allowed(lambda name=name: catalog.create_volume(store, f"of-{name}", 9 * BLOCK, origin=name))  # type: ignore[misc]
    allowed(lambda: gc.collect(store))
    for name in store.names():
        catalog.remove(store, name)
    assert store.names() == []
    assert not gc.collect(store).faults
    assert list(store.layers()) == []


def test_a_damaged_store_file(tmp_path: Path, seeds: list[int]) -> None:
    whole_store(tmp_path / "store")
    path = tmp_path / "store" / "store.json"
    data = path.read_bytes()
    for seed in seeds:
        chance = random.Random(seed)
        damaged = [text.encode("latin-1") for text in JSON] + [spoil(data, chance) for _ in range(TIMES // 8)]
        for content in damaged:
            path.write_bytes(content)
            allowed(lambda: open_store(tmp_path / "store"))
            allowed(lambda: create_store(tmp_path / "store"))


def test_every_flipped_bit_of_the_bookkeeping_is_named(tmp_path: Path) -> None:
    """Maps and bitmaps have checksums: not one bit changes unnoticed."""
    whole_store(tmp_path / "store")
    chance = random.Random(1)
    for path in [*tmp_path.rglob("map"), *tmp_path.rglob("*.pages")]:
        data = path.read_bytes()
        marked = [at for at, byte in enumerate(data) if byte] if path.suffix == ".pages" else range(len(data))
        for at in chance.sample(list(marked), min(40, len(marked))):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
            with pytest.raises(BrokenError, match=path.parent.name if path.name == "map" else path.name):
                read_everything(open_store(tmp_path / "store"))
        path.write_bytes(data)
    read_everything(open_store(tmp_path / "store"))


def test_every_flipped_bit_of_the_facts_is_named() -> None:
    """Or it is in white space, and changes nothing."""
    info = Info(created=1e9 + 0.25, origin="debian-12", cname="x", image=True, properties={"OSFAMILY": "linux"})
    data = encode_info(info)
    noticed = 0
    for at in range(len(data)):
        for bit in range(8):
            try:
                found = decode_info(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], "x")
            except BrokenError:
                noticed += 1
            else:
                assert found == info, (at, bit)
    assert noticed > 6 * len(data)


def read_everything(store: Store) -> None:
    for name in store.names():
        session = Session(store, name)
        try:
            session.readinto(memoryview(bytearray(session.size)), 0)
        finally:
            session.shutdown()


ODD = st.text(min_size=0, max_size=100) | st.sampled_from(
    (
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\0b",
        "a\nb",
        "-x",
        ".hidden",
        "x" * 73,
        "x" * 10000,
        "ä",
        "a b",
        "$(id)",
        "%s",
        "con\r",
    )
)
GOOD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@settings(max_examples=150)
@given(name=ODD, size=st.integers() | st.sampled_from(HUGE))
def test_names_and_sizes(name: str, size: int) -> None:
    store = MemoryStore()
    good_name = 0 < len(name) <= 72 and GOOD.issuperset(name) and name[0].isalnum()
    good_size = 0 < size <= LARGEST and size % SECTOR == 0
    assert allowed(lambda: check_name(name)) == good_name
    assert allowed(lambda: check_size(size)) == good_size
    if size <= 1 << 40:
        assert allowed(lambda: catalog.create_volume(MemoryStore(), name, size)) == (good_name and good_size)
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    session.open(True)
    assert allowed(lambda: session.snapshot(name, Info(created=0.0))) == (good_name and name != "vol")
    if size <= 1 << 40 or size > LARGEST:
        assert allowed(lambda: session.grow(size)) == good_size
    allowed(lambda: catalog.create_volume(store, "clone", BLOCK, origin=name))
    allowed(lambda: catalog.remove(store, name))
    allowed(lambda: specs.parse(name))
    allowed(lambda: specs.parse(f"rados:{name}?{name}={size}"))
    allowed(lambda: specs.parse(f"files:/{name}"))


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Path]:
    """A control socket with a session behind it."""
    store = MemoryStore()
    catalog.create_volume(store, "vol", BLOCK)
    session = Session(store, "vol")
    ended = threading.Event()

    def handle(request: control.Request) -> dict[str, object]:
        session.open(bool(request["exclusive"]))
        return {"size": session.size}

    listener = control.listen(tmp_path)
    thread = threading.Thread(target=control.serve, args=(listener, handle, lambda: not ended.is_set()))
    thread.start()
    yield tmp_path
    ended.set()
    thread.join()


def test_control_requests(answering: Path, seeds: list[int]) -> None:
    """Whatever comes, the next call is answered."""
    good = json.dumps({"command": "open", "exclusive": True}).encode() + b"\n"
    for seed in seeds:
        chance = random.Random(seed)
        for number in range(TIMES // 4):
            data = spoil(good, chance) if number % 4 else chance.choice(JSON).encode("latin-1") + b"\n"
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
                caller.settimeout(10)
                caller.connect(str(answering / control.SOCKET))
                caller.sendall(data)
                caller.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda caller=caller: caller.recv(4096), b""))  # type: ignore[misc]
            if answer:
                reply = json.loads(answer)
                assert reply["ok"] or "\n" not in reply["message"]
        assert control.call(answering, "vol", "open", exclusive=True)["size"] == BLOCK

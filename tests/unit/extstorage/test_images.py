# SPDX-License-Identifier: BSD-2-Clause
"""Importing: what is read is what was imported, once in the store, resumable, and refused without a trace."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from extstorage import catalog, fsck, gc, intake, maps, scrub, sources, streams
from extstorage.content import Block, Take, digest_of, root_of, root_of_map
from extstorage.errors import AlreadyThereError, BadNameError, BadSizeError, FullStoreError, HeldError
from extstorage.files_store import FilesStore, create_store
from extstorage.images import import_from
from extstorage.maps import DIGEST, VolumeMap
from extstorage.names import BLOCK, PAGE, SECTOR
from extstorage.progress import untold
from extstorage.session import Session
from extstorage.sources import UnusableFileError
from extstorage.store import Info, Store
from extstorage.streams import Given, Terms
from ganeti_plugin.containers import ImageRefusedError
from tests.datapath.memory_store import MemoryStore
from tests.unit.extstorage.told import Told

SIZE = 20 * BLOCK + 5 * SECTOR


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return create_store(tmp_path / "store") if request.param == "files" else MemoryStore()


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BATCH", 2)
    monkeypatch.setattr(intake, "AHEAD", 2)
    monkeypatch.setattr(intake, "CHECKPOINT", 4 * BLOCK)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Data, holes, zeros that are no hole, blocks that are alike, and an end that is no block's."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as stream:
        stream.truncate(SIZE)
        for number in (*range(2), *range(5, 15), 19, 20):
            stream.seek(number * BLOCK + (PAGE if number % 2 else 0))
            stream.write(random.Random(number % 7).randbytes(2000) if number != 7 else bytes(PAGE))
    return path


def take(store: Store, name: str, path: Path) -> None:
    with sources.opened(path, "raw") as source:
        import_from(store, name, source, {"OSFAMILY": "linux"}, untold)


def contents(store: Store, name: str) -> bytes:
    session = Session(store, name)
    buffer = bytearray(session.size)
    session.readinto(memoryview(buffer), 0)
    return bytes(buffer)


def digests(store: Store) -> set[bytes]:
    return {digest for digest, _ in store.contents()}


def test_an_image_reads_as_its_file(store: Store, disk: Path) -> None:
    told = Told()
    with sources.opened(disk, "raw") as source:
        import_from(store, "image", source, {"OSFAMILY": "linux"}, told)
    assert told.percents() == sorted(told.percents())
    assert told.percents()[-1] == 100
    assert contents(store, "image") == disk.read_bytes()
    (item,) = catalog.items(store)
    assert (item.name, item.kind, item.size, item.facts.properties) == ("image", "image", SIZE, {"OSFAMILY": "linux"})
    assert catalog.used(store, "image") == sum(store.content_used(digest) for digest, _ in store.contents()) > 0
    volume_map = store.read_map("image")
    assert [volume_map.depth(number) for number in (0, 2, 4, 7, 20)] == [1, 0, 0, 0, 1]
    assert digests(store) == {layer.owner for number in range(21) for layer in volume_map.layers(number)}


def test_what_is_there_is_not_stored_again(store: Store, disk: Path) -> None:
    take(store, "image", disk)
    before = digests(store)
    # Only two of seven kinds of block at two places each, and the last, which is cut short.
    assert len(before) < 14
    take(store, "other", disk)
    assert digests(store) == before
    with disk.open("r+b") as stream:
        stream.seek(8 * BLOCK)
        stream.write(b"different")
    take(store, "third", disk)
    assert len(digests(store) - before) == 1
    assert contents(store, "third") == disk.read_bytes()


class Death(BaseException):
    """Kill -9, as far as the store can tell."""


class Mortal:
    """Reads a file and dies on the way."""

    def __init__(self, source: sources.DiskSource, dies_at: int) -> None:
        self._source = source
        self._dies_at = dies_at
        self.size = source.size
        self.identity = source.identity
        self.read: list[int] = []

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        for block in self._source.blocks(first, take):
            if block.number >= self._dies_at:
                raise Death
            self.read.append(block.number)
            yield block

    def check(self) -> None:
        self._source.check()


PENDING = [("import-image", "volume"), ("import.image", "volume")]


def named(store: Store) -> set[bytes]:
    """The blocks that no collection takes."""
    tables = [store.read_map(name).digests for name in store.names()]
    return {table[at : at + DIGEST] for table in tables for at in range(0, len(table), DIGEST)}


def test_an_interrupted_import_goes_on(store: Store, disk: Path) -> None:
    read: list[list[int]] = []
    for dies_at in (12, 14, 20):
        with sources.opened(disk, "raw") as source:
            mortal = Mortal(source, dies_at)
            with pytest.raises(Death):
                import_from(store, "image", mortal, {}, untold)
        read.append(mortal.read)
        assert [(item.name, item.kind) for item in catalog.items(store)] == PENDING
        assert not [finding for finding in fsck.check(store) if finding.damage]
        assert digests(store) <= named(store)
    assert read[0][0] == 0
    assert 0 < read[1][0] <= read[2][0] <= 19
    take(store, "image", disk)
    assert contents(store, "image") == disk.read_bytes()
    assert store.names() == ["image"]


def test_what_was_removed_meanwhile_is_stored_again(store: Store, disk: Path) -> None:
    """Such as a block that was found to be damaged."""
    with sources.opened(disk, "raw") as source, pytest.raises(Death):
        import_from(store, "image", Mortal(source, 20), {}, untold)
    done = int(store.read_info("import-image").properties["done"])
    layers = [store.read_map("import-image").layers(number) for number in range(done)]
    (digest, *_) = next(found for found in reversed(layers) if found)[0]
    assert store.remove_content(digest, dict(store.contents())[digest])
    take(store, "image", disk)
    assert contents(store, "image") == disk.read_bytes()


def test_a_pending_map_that_is_older_than_its_facts_is_not_believed(store: Store, disk: Path) -> None:
    """As a repair puts it back: it lacks blocks, which are no holes."""
    with sources.opened(disk, "raw") as source, pytest.raises(Death):
        import_from(store, "image", Mortal(source, 20), {}, untold)
    late = store.read_map("import-image")
    store.write_map("import-image", maps.cut(late, 6)._replace(epoch=late.epoch - 1))
    take(store, "image", disk)
    assert contents(store, "image") == disk.read_bytes()


def test_what_an_unverified_stream_brought_is_not_believed(store: Store, disk: Path) -> None:
    """H28: it broke off, so its digest was never compared; the stream that comes next is as it should be."""
    wanted = hashlib.sha256(disk.read_bytes()).hexdigest()
    evil = disk.with_name("evil.raw")
    evil.write_bytes(b"evil" + disk.read_bytes()[4:])
    with streams.opened(Given(str(evil), sha256=wanted), Terms(1 << 40)) as source, pytest.raises(Death):
        import_from(store, "image", Mortal(source, 14), {}, untold)
    assert "import-image" in store.names()
    with streams.opened(Given(str(disk), sha256=wanted), Terms(1 << 40)) as source:
        import_from(store, "image", source, {}, untold)
    assert contents(store, "image") == disk.read_bytes()


def test_an_import_that_is_broken_off_keeps_what_it_has(store: Store, disk: Path) -> None:
    """By Ctrl-C: nothing without a name is left, and the next one goes on where it ended."""
    read: list[int | None] = []

    def break_off(percent: int | None, detail: str = "") -> None:
        read.append(percent)
        if len(read) == 7:
            raise KeyboardInterrupt

    with sources.opened(disk, "raw") as source, pytest.raises(KeyboardInterrupt):
        import_from(store, "image", source, {}, break_off)
    done = int(store.read_info("import-image").properties["done"])
    assert done > 4
    pending = store.read_map("import-image")
    assert {layer.owner for number in range(done) for layer in pending.layers(number)} <= digests(store)
    if isinstance(store, FilesStore):
        assert not list((Path(store.title) / "content" / "new").iterdir())
    with sources.opened(disk, "raw") as source:
        mortal = Mortal(source, 99)
        import_from(store, "image", mortal, {}, untold)
    assert mortal.read[0] >= done
    assert contents(store, "image") == disk.read_bytes()


def test_another_source_begins_anew(store: Store, disk: Path) -> None:
    with sources.opened(disk, "raw") as source, pytest.raises(Death):
        import_from(store, "image", Mortal(source, 14), {}, untold)
    with disk.open("r+b") as stream:
        stream.write(b"changed")
    take(store, "image", disk)
    assert contents(store, "image") == disk.read_bytes()
    assert store.names() == ["image"]


def test_a_file_that_changes_is_refused(store: Store, disk: Path) -> None:
    with sources.opened(disk, "raw") as source:
        os.utime(disk, ns=(1, 1))
        with pytest.raises(UnusableFileError, match="changed while it was read"):
            import_from(store, "image", source, {}, untold)
        os.truncate(disk, 10 * BLOCK)
        with pytest.raises(UnusableFileError, match="shorter|changed"):
            import_from(store, "image", source, {}, untold)
    assert store.names() == []


class Watched(MemoryStore):
    """Whose changes of maps take their time, and are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, int] = {}
        self.changing: set[str] = set()
        self.has_lock = threading.local()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with super().locked():
            self.has_lock.value = True
            yield
            self.has_lock.value = False

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        assert name not in self.changing, "in RADOS, one of two changes at once is refused"
        self.changing.add(name)
        yield
        self.changing.remove(name)

    def write_map(self, name: str, volume_map: VolumeMap, packed: bytes = b"") -> None:
        with self._alone(name):
            time.sleep(0.001)
            before = named(self)
            super().write_map(name, volume_map, packed)
            self.written[name] = self.written.get(name, 0) + len(maps.encode(volume_map))
            assert before <= named(self)
            assert name == "import.image" or self.has_lock.value, "or a collection could see both without a name"

    def write_info(self, name: str, info: Info) -> None:
        with self._alone(name):
            super().write_info(name, info)


def test_names_are_always_in_one_of_the_two_maps(disk: Path) -> None:
    store = Watched()
    take(store, "image", disk)
    assert store.written.keys() == {"import-image", "import.image"}
    assert contents(store, "image") == disk.read_bytes()


class Short:
    """Very many blocks of a few bytes."""

    identity = "short"

    def __init__(self, count: int) -> None:
        self.size = count * BLOCK

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        for number in range(first, self.size // BLOCK):
            buffer = take()
            buffer[:8] = (number + 1).to_bytes(8, "big")
            yield Block(number, buffer, 8)

    def check(self) -> None:
        """As it was."""


class Counted(MemoryStore):
    """Counts the bytes of maps that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def write_map(self, name: str, volume_map: VolumeMap, packed: bytes = b"") -> None:
        super().write_map(name, volume_map, packed)
        self.written += len(self._maps[name])


def test_the_map_is_not_written_anew_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BATCH", 16)
    monkeypatch.setattr(intake, "CHECKPOINT", 32 * BLOCK)
    for count in (1 << 10, 1 << 12):
        store = Counted()
        import_from(store, "image", Short(count), {}, untold)
        assert len(store.contents()) == count
        assert store.written < 20 * count**1.5


class Stream:
    """A source of unknown length, which can't be recognized."""

    identity = ""

    def __init__(self, blocks: int, size: int) -> None:
        self._blocks = blocks
        self._end = size
        self.size: int | None = None

    def blocks(self, first: int, take: Take) -> Iterator[Block]:
        assert first == 0
        for number in range(self._blocks):
            buffer = take()
            buffer[:8] = number.to_bytes(8, "big")
            buffer[8:] = bytes(BLOCK - 8)
            yield Block(number, buffer, min(BLOCK, self._end - number * BLOCK))
        self.size = self._end

    def check(self) -> None:
        if self._end == 3 * SECTOR:
            raise ImageRefusedError(reason="of its end")


def test_a_stream_tells_its_length_by_ending(store: Store) -> None:
    told = Told()
    import_from(store, "image", Stream(12, 11 * BLOCK + SECTOR), {}, told)
    assert told.calls[0] == (None, " so far: 4 MiB")
    assert told.calls[-1] == (100, "")
    data = contents(store, "image")
    assert len(data) == 11 * BLOCK + SECTOR
    assert [int.from_bytes(data[at : at + 8], "big") for at in range(0, len(data), BLOCK)] == list(range(12))


@pytest.mark.parametrize(("size", "error"), [(3 * SECTOR, ImageRefusedError), (1000, BadSizeError), (0, BadSizeError)])
def test_a_stream_that_is_refused_leaves_nothing(store: Store, size: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        import_from(store, "image", Stream(-(-size // BLOCK), size), {}, untold)
    assert store.names() == []


def test_names_that_are_taken(store: Store, disk: Path) -> None:
    catalog.create_volume(store, "there", BLOCK)
    for name, error in (("there", AlreadyThereError), ("x" * 66, BadNameError), ("-x", BadNameError)):
        with pytest.raises(error):
            take(store, name, disk)
    assert store.names() == ["there"]


def test_a_volume_that_only_looks_like_an_import_is_left_alone(store: Store, disk: Path) -> None:
    catalog.create_volume(store, "import-image", BLOCK)
    store.create("import-other", maps.from_digests(BLOCK, bytes(16), [None]), Info(created=0.0, image=True))
    catalog.create_volume(store, "import.third", BLOCK)
    for name in ("image", "other", "third"):
        with pytest.raises(AlreadyThereError, match=f"'import.{name}' is already"):
            take(store, name, disk)
    assert store.names() == ["import-image", "import-other", "import.third"]


def test_two_imports_of_one_name(store: Store, disk: Path) -> None:
    """H27: at once."""

    class Meanwhile(Mortal):
        def check(self) -> None:
            with pytest.raises(HeldError, match="import-image"):
                take(store, "image", disk)

    with sources.opened(disk, "raw") as source:
        import_from(store, "image", Meanwhile(source, 100), {}, untold)
    assert store.names() == ["image"]


def test_an_image_that_appears_meanwhile_is_not_replaced(store: Store, disk: Path) -> None:
    class Meanwhile(Mortal):
        def check(self) -> None:
            catalog.create_volume(store, "image", BLOCK)

    with sources.opened(disk, "raw") as source, pytest.raises(AlreadyThereError):
        import_from(store, "image", Meanwhile(source, 100), {}, untold)
    assert [item.kind for item in catalog.items(store)] == ["volume"]


def test_an_image_has_the_name_of_its_content(store: Store, disk: Path) -> None:
    take(store, "image", disk)
    data = disk.read_bytes()
    expected = root_of(digest_of(memoryview(data[at : at + BLOCK])) for at in range(0, len(data), BLOCK))
    assert root_of_map(store.read_map("image")) == expected
    catalog.create_volume(store, "empty", 3 * BLOCK)
    assert root_of_map(store.read_map("empty")) == root_of([None] * 3)


def test_a_full_store_says_so_and_the_import_goes_on_when_there_is_room(
    store: Store, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = type(store).put_content
    room = [5]

    def full(self: Store, digest: bytes, data: memoryview) -> bool:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(self, digest, data)

    monkeypatch.setattr(type(store), "put_content", full)
    with pytest.raises(FullStoreError):
        take(store, "image", disk)
    assert store.names() == ["import-image", "import.image"]
    room[0] = 1000
    take(store, "image", disk)
    assert store.names() == ["image"]
    assert contents(store, "image") == disk.read_bytes()


def test_imports_while_collections_run(store: Store, tmp_path: Path, seeds: list[int]) -> None:
    """Images that share blocks come and go, interrupted or not; no collection takes a block that is needed."""
    for seed in seeds:
        chance = random.Random(seed)
        ended = threading.Event()
        faults: list[BaseException] = []

        def collect(ended: threading.Event = ended, faults: list[BaseException] = faults) -> None:
            try:
                while not ended.wait(0.02):
                    gc.collect(FilesStore(Path(store.title)) if isinstance(store, FilesStore) else store)
            except BaseException as error:
                faults.append(error)

        collector = threading.Thread(target=collect)
        collector.start()
        try:
            for number in range(8):
                path = tmp_path / f"{seed}-{number}.raw"
                path.write_bytes(b"".join(bytes([chance.randrange(1, 6)]) * BLOCK for _ in range(5)))
                name = f"image{chance.randrange(3)}"
                catalog.remove(store, name)
                with sources.opened(path, "raw") as source, contextlib.suppress(Death):
                    import_from(store, name, Mortal(source, chance.choice((3, 100))), {}, untold)
                for image in catalog.items(store, "image"):
                    digests_of = store.read_map(image.name).digests
                    assert {digests_of[at : at + 32] for at in range(0, len(digests_of), 32)} <= digests(store), seed
        finally:
            ended.set()
            collector.join()
        assert faults == [], f"seed {seed}"
        assert scrub.scrub(store, lambda _done, _all: None).damage == (), f"seed {seed}"


class Strict(MemoryStore):
    """Names come and go under its lock alone."""

    def create(self, name: str, volume_map: maps.VolumeMap, info: Info) -> None:
        assert self._mutex.locked()
        super().create(name, volume_map, info)

    def remove(self, name: str) -> None:
        assert self._mutex.locked()
        super().remove(name)


def test_the_names_of_intakes_come_and_go_under_the_lock_of_the_store(disk: Path, tmp_path: Path) -> None:
    """Else one that begins elsewhere might be struck from the list of names, and a collection take its blocks."""
    store = Strict()
    take(store, "image", disk)
    with pytest.raises(AlreadyThereError):
        take(store, "image", disk)
    with sources.opened(disk, "raw") as source, pytest.raises(Death):
        import_from(store, "broken", Mortal(source, 3), {}, untold)
    intake.clear(store, "import-broken")
    assert store.names() == ["image"]

# SPDX-License-Identifier: BSD-2-Clause
"""The server as other people's clients see it: libnbd and QEMU. Kill -9 under load, two writers, extents, imports."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import nbd
import pytest

from extstorage import sources
from tests.datapath.nbd_server import connected
from tests.real.extstorage.provider import (
    COMMAND,
    RUN,
    STORE,
    Client,
    command,
    do,
    eventually,
    kill_server,
    new_name,
    refused,
    server_pid,
    traces,
    uri,
)

pytestmark = pytest.mark.timeout(180)

PAGE = 4096
SIZE = 64 << 20


def connect(volume: str) -> nbd.NBD:
    return connected(RUN / volume / "nbd.sock")


def test_libnbd_sees_every_ability(volume: str) -> None:
    client = connect(volume)
    assert client.get_size() == SIZE
    for ability in ("can_flush", "can_fua", "can_trim", "can_zero", "can_cache", "can_multi_conn", "can_fast_zero"):
        assert getattr(client, ability)(), ability
    client.shutdown()


def test_connections_leave_nothing_in_the_server(volume: str) -> None:
    """Each of a connection's threads is used; what Python keeps of one takes about 20 KiB."""

    def resident() -> int:
        return int(Path(f"/proc/{server_pid(volume)}/statm").read_text().split()[1]) * PAGE

    def use(connections: int) -> None:
        for _ in range(connections):
            client = connect(volume)
            buffers = [nbd.Buffer(PAGE) for _ in range(64)]
            for number, buffer in enumerate(buffers):
                client.aio_pread(buffer, number * PAGE)
            while client.aio_in_flight():
                client.poll(-1)
            client.shutdown()

    use(20)
    before = resident()
    use(200)
    assert resident() - before < 10 << 20


def test_reads_and_writes_against_a_byte_array(volume: str) -> None:
    """Random requests of any offset and length, on several connections, with snapshots in between."""
    chance = random.Random(4)
    model = bytearray(SIZE)
    clients = [connect(volume) for _ in range(3)]
    for number in range(400):
        client = chance.choice(clients)
        offset = chance.randrange(SIZE)
        length = min(chance.choice((1, 512, 700, PAGE, 3 * PAGE, 65536, 5 << 20)), SIZE - offset)
        kind = chance.randrange(5)
        if kind < 2:
            data = chance.randbytes(length)
            client.pwrite(data, offset, nbd.CMD_FLAG_FUA if kind else 0)
            model[offset : offset + length] = data
        elif kind == 2:
            client.zero(length, offset)
            model[offset : offset + length] = bytes(length)
        elif kind == 3:
            first, end = -(-offset // PAGE) * PAGE, (offset + length) // PAGE * PAGE
            if end > first:
                client.trim(end - first, first)
                model[first:end] = bytes(end - first)
        else:
            assert client.pread(length, offset) == model[offset : offset + length]
        if number % 80 == 40:
            name = f"{volume[:8]}-{number}"
            assert command("snapshot", "create", volume, name).returncode == 0
            assert command("snapshot", "remove", name).returncode == 0
    for client in clients:
        assert _contents(client) == model
        client.shutdown()


def _contents(client: nbd.NBD) -> bytes:
    return b"".join(client.pread(4 << 20, offset) for offset in range(0, SIZE, 4 << 20))


def test_extents_tell_holes(volume: str) -> None:
    client = connect(volume)
    client.pwrite(b"x" * PAGE, 10 << 20)
    found: list[int] = []

    def keep(_context: str, _offset: int, entries: list[int], _error: object) -> int:
        found.extend(entries)
        return 0

    client.block_status(SIZE, 0, keep)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    assert pairs[:2] == [(10 << 20, hole), (PAGE, 0)]
    client.trim(PAGE, 10 << 20)
    client.flush()
    client.shutdown()
    usage = sum(path.stat().st_blocks * 512 for path in (STORE / "data").rglob("*.data"))
    assert usage < 1 << 30


def test_kill_9_under_load_loses_nothing_acknowledged(volume: str) -> None:
    chance = random.Random(9)
    model: dict[int, bytes] = {}
    for _ in range(4):
        client = connect(volume)
        deadline = time.monotonic() + chance.uniform(0.1, 0.5)
        pid = server_pid(volume)
        in_doubt = -1
        with contextlib.suppress(nbd.Error):
            while True:
                if time.monotonic() > deadline and pid:
                    os.kill(pid, signal.SIGKILL)
                    pid = 0
                page = chance.randrange(SIZE // PAGE)
                data = bytes([chance.randrange(256)]) * PAGE
                in_doubt = page
                client.pwrite(data, page * PAGE)
                model[page] = data
        eventually(lambda: server_pid(volume) != 0 or not Path("/run/systemd/system").exists())
        do("attach", volume)
        again = connect(volume)
        model.pop(in_doubt, None)
        for page, data in model.items():
            assert again.pread(PAGE, page * PAGE) == data
        again.shutdown()
    assert len(model) > 100


def test_qemu_reconnects_by_itself(volume: str) -> None:
    """The URI that attach prints: a client in the middle of its work does not notice the death of the server."""
    if not Path("/run/systemd/system").exists():
        pytest.fail("this test needs systemd as PID 1: run it in a node of the testbed")
    client = Client(volume, "write -P 1 0 1M")
    kill_server(volume)
    client.finish("write -P 2 1M 1M", "read -P 1 0 1M", "read -P 2 1M 1M", "flush")


def test_a_second_server_is_refused(volume: str, tmp_path: Path) -> None:
    """Another node would see the store like this: a server of its own, with its own /run."""
    run = tmp_path / "run"
    run.mkdir()
    tree = "/usr/share/snf-ganeti" if Path("/usr/share/snf-ganeti").exists() else str(Path(__file__).parents[3])
    other = subprocess.Popen(
        [
            *("nbdkit", "-f", "--unix", str(run / "nbd.sock"), "python", f"{tree}/extstorage/nbdkit_plugin.py"),
            *(f"volume={volume}", f"store=files:{STORE}", f"run={run}"),
        ]
    )
    try:
        eventually((run / "control.sock").exists)
        first, second = connect(volume), nbd.NBD()
        second.connect_unix(str(run / "nbd.sock"))
        first.pwrite(b"1" * PAGE, 0)
        first.flush()
        with pytest.raises(nbd.Error):
            second.pwrite(b"2" * PAGE, 0)
        assert second.pread(PAGE, 0) == b"1" * PAGE
        do("close", volume)
        second.pwrite(b"2" * PAGE, PAGE)
        assert "in use by node" in refused("open", volume, VOL_OPEN_EXCLUSIVE="True")
        second.shutdown()
        first.shutdown()
    finally:
        other.terminate()
        other.wait(30)
    do("open", volume, VOL_OPEN_EXCLUSIVE="True")
    assert connect(volume).pread(PAGE, PAGE) == b"2" * PAGE


@pytest.fixture
def raw_image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as stream:
        stream.truncate(48 << 20)
        for offset in (0, 5 << 20, (47 << 20) + 12345):
            stream.seek(offset)
            stream.write(random.Random(offset).randbytes(200_000))
    return path


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_import_clone_and_remove(raw_image: Path, tmp_path: Path, kind: str) -> None:
    source = raw_image
    if kind == "qcow2":
        source = tmp_path / "disk.qcow2"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw_image, source], check=True)
    source.chmod(0o600)
    name = f"image-{kind}-{os.getpid()}"
    done = command("image", "import", name, source, "--format", kind, "--property", "osfamily=linux")
    assert done.returncode == 0, done.stderr
    shown = json.loads(command("image", "show", name, "--json").stdout)
    assert (shown["size"], shown["properties"]) == (48 << 20, {"OSFAMILY": "linux"})
    assert 0 < shown["used"] <= 5 << 22
    clone = new_name()
    do("create", clone, VOL_SIZE="64", EXTP_ORIGIN=name)
    assert command("image", "remove", name).returncode == 0
    do("attach", clone)
    client = connect(clone)
    data = raw_image.read_bytes()
    assert client.pread(16 << 20, 0) + client.pread(16 << 20, 16 << 20) == data[: 32 << 20]
    assert client.pread(16 << 20, 32 << 20) == data[32 << 20 :]
    assert client.pread(16 << 20, 48 << 20) == bytes(16 << 20)
    client.shutdown()
    do("detach", clone)
    do("remove", clone)
    assert traces(name) + traces(f"import-{name}") + traces(f"import.{name}") + traces(clone) == []


def test_a_hashed_snapshot_shares_its_blocks_with_an_image(volume: str, raw_image: Path) -> None:
    """The same content has the same name, however it came into the store."""
    image, snapshot = f"image-{os.getpid()}", f"{volume[:8]}-hashed"
    assert command("image", "import", image, raw_image).returncode == 0
    subprocess.run(["nbdcopy", raw_image, uri(volume)], check=True)
    assert command("snapshot", "create", volume, snapshot).returncode == 0
    root = json.loads(command("image", "show", image, "--json").stdout)["hash"]
    assert json.loads(command("snapshot", "show", snapshot, "--json").stdout)["hash"] == ""
    before = blocks()
    done = command("snapshot", "hash", snapshot, "--json")
    assert done.returncode == 0, done.stderr
    # The volume is larger than the image: 16 blocks and not 12, of which the last are holes.
    assert len(root) == 64
    assert json.loads(done.stdout)["hash"] == json.loads(command("snapshot", "show", snapshot, "--json").stdout)["hash"]
    assert blocks() == before
    for kind, name in (("snapshot", snapshot), ("image", image)):
        assert command(kind, "remove", name).returncode == 0


def test_scrub_finds_a_flipped_bit_and_an_import_heals_it(raw_image: Path) -> None:
    image = f"image-{os.getpid()}"
    with raw_image.open("r+b") as stream:
        stream.seek(20 << 20)
        stream.write(os.urandom(PAGE))
    before = blocks()
    assert command("image", "import", image, raw_image).returncode == 0
    done = command("scrub")
    assert done.returncode == 0, done.stderr
    assert "no damaged" in done.stdout
    assert "100 %" not in done.stderr  # nobody watches
    path = next(path for path in (STORE / "content").glob("??/??/*") if path.name not in before)
    with path.open("r+b") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write(bytes([first[0] ^ 1]))
    done = command("scrub", "--repair", "--json")
    assert done.returncode == 1
    (report,) = json.loads(done.stdout)
    assert [(one["what"], one["hits"], one["removed"]) for one in report["damage"]] == [
        (f"block {path.name}", [image], True)
    ]
    assert command("image", "import", f"{image}-again", raw_image).returncode == 0
    assert command("scrub").returncode == 0
    for name in (image, f"{image}-again"):
        assert command("image", "remove", name).returncode == 0


def blocks() -> set[str]:
    return {path.name for path in (STORE / "content").glob("??/??/*")}


def test_an_image_that_is_being_read_is_for_its_readers_only(raw_image: Path, tmp_path: Path) -> None:
    qcow2 = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw_image, qcow2], check=True)
    with sources.opened(qcow2, "qcow2"):
        (folder,) = Path("/run").glob("snf-archipelago-import-*")
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect('{folder}/raw.sock')"
        for user, refusals in (("65534", 0), ("1", 1)):
            done = subprocess.run(
                ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "python3", "-c", connect],
                capture_output=True,
                text=True,
            )
            assert done.stderr.count("PermissionError") == refusals, done.stderr


def test_what_is_not_as_declared_is_refused(raw_image: Path, tmp_path: Path) -> None:
    qcow2 = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw_image, "-F", "raw", qcow2], check=True)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, kind in ((qcow2, "raw"), (qcow2, "qcow2"), (raw_image, "qcow2"), (fifo, "raw"), (tmp_path / "no", "raw")):
        done = command("image", "import", "refused", path, "--format", kind)
        assert done.returncode != 0
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert traces("refused") + traces("import-refused") + traces("import.refused") == []


def test_an_import_that_is_killed_goes_on(tmp_path: Path, seeds: list[int]) -> None:
    """At random points, several times; what is imported in the end is the file, and each block is stored once."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as stream:
        for number in range(60):
            stream.write(random.Random(number % 50).randbytes(4 << 20))
    for seed in seeds:
        chance = random.Random(seed)
        name = f"killed-{seed}"
        for _ in range(6):
            process = subprocess.Popen([COMMAND, "image", "import", name, path], stderr=subprocess.DEVNULL)
            time.sleep(chance.uniform(0.1, 0.8))
            process.kill()
            if process.wait() == 0:
                break
        else:
            assert command("image", "import", name, path).returncode == 0, f"seed {seed}"
        assert traces(f"import-{name}") + traces(f"import.{name}") == []
        exported = tmp_path / "exported"
        clone = new_name()
        do("create", clone, VOL_SIZE="240", EXTP_ORIGIN=name)
        do("attach", clone)
        subprocess.run(["nbdcopy", uri(clone), exported], check=True)
        do("detach", clone)
        do("remove", clone)
        assert filecmp.cmp(path, exported, shallow=False), f"seed {seed}"
        before = stored_bytes()
        assert command("image", "import", f"again-{seed}", path).returncode == 0
        assert stored_bytes() - before < 1 << 20, "what was there was stored again"
        for image in (name, f"again-{seed}"):
            assert command("image", "remove", image).returncode == 0


def test_a_clone_of_100_gib_is_a_map_and_no_data() -> None:
    big, clone = new_name(), new_name()
    do("create", big, VOL_SIZE="102400")
    assert command("snapshot", "create", big, f"{big[:8]}-big").returncode == 0
    before = stored_bytes()
    do("create", clone, VOL_SIZE="102400", EXTP_ORIGIN=f"{big[:8]}-big")
    # 25,600 blocks of at most 32 bytes in the map, and the description.
    assert stored_bytes() - before < 2**20
    for name in (clone, big):
        do("remove", name)
    assert command("snapshot", "remove", f"{big[:8]}-big").returncode == 0


def stored_bytes() -> int:
    """What the store's files take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in STORE.rglob("*") if path.is_file())

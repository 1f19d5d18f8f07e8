# SPDX-License-Identifier: BSD-2-Clause
"""Measures volumes and their peers where they run, in a node: request on stdin, medians on stdout, both JSON.

    {"what": "files" | "rados" | "snapshot" | "rados-snapshot" | "memory" | "import", "rounds": N}
        ->  {"NAME": VALUE, ...}

Clients are the usual ones: `qemu-img bench` with cache=none asks our servers, librbd and qemu-nbd in the same way, and
its own clock counts, so that starting a program does not. Ours and the peer's runs take turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from extstorage import apply
from tests.real.extstorage.provider import command, do, new_name, server_pid, uri

PAGE = 4096
BLOCK = 4 << 20
BLOCKS = 64
SIZE = BLOCKS * BLOCK
SCRATCH = Path("/srv/shared/bench")

#: Steps from one request to the next: into the next block and the next page; and far away, over the whole disk.
NEXT_BLOCK = BLOCK
NEXT_BLOCK_AND_PAGE = BLOCK + PAGE
FAR = 37 * BLOCK + 5 * PAGE

#: What is written: data of a real image is not zeros, and librbd copies up no block of zeros.
PATTERN = "165"

RBD_POOL = "bench-rbd"

#: How many reads of 4 KiB one at a time, and how many with 32 under way.
RADOS_READS = (3000, 12000)

Measured = dict[str, list[float]]


def run(*words: str | Path, timeout: float = 600) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def bench(target: str, count: int, *, depth: int = 1, size: int = PAGE, step: int = 0, write: bool = False) -> float:
    """Seconds that `count` requests take."""
    words = ["qemu-img", "bench", "-f", "raw", "-t", "none", "-c", str(count), "-d", str(depth), "-s", str(size)]
    output = run(*words, "-S", str(step or size), *(["-w", f"--pattern={PATTERN}"] if write else []), target)
    found = re.search(r"Run completed in ([0-9.]+) seconds", output)
    assert found, output
    return float(found[1])


@contextlib.contextmanager
def volume(store: str, origin: str = "", size: int = SIZE) -> Iterator[str]:
    """A volume, attached and open; its NBD URI is `uri(name)`."""
    name = new_name()
    parameters = {"EXTP_STORE": store} | ({"EXTP_ORIGIN": origin} if origin else {})
    do("create", name, VOL_SIZE=str(size >> 20), **parameters)
    try:
        do("attach", name, **parameters)
        do("open", name, VOL_OPEN_EXCLUSIVE="True", **parameters)
        yield name
    finally:
        do("detach", name, **parameters)
        do("remove", name, **parameters)


def fill(target: str) -> None:
    bench(target, SIZE // BLOCK, depth=2, size=BLOCK, write=True)


def template(store: str) -> str:
    """A snapshot of a full volume."""
    name = f"bench-{store}"
    if name not in run("archipelago", "snapshot", "list", "--store", store).split():
        with volume(store) as full:
            fill(uri(full))
            do("snapshot", full, VOL_SNAPSHOT_NAME=name, VOL_SNAPSHOT_SIZE=str(SIZE >> 20), EXTP_STORE=store)
    return name


# Against librbd.


def rbd(*words: str) -> str:
    return run("rbd", "--pool", RBD_POOL, *words)


def rbd_uri(image: str) -> str:
    return f"rbd:{RBD_POOL}/{image}"


def need_rbd() -> None:
    """Our store; and a pool for the peer, in it a full image, in it a snapshot to be cloned."""
    with apply.using_store(apply.site(), "rados", make=True):
        pass
    if RBD_POOL in run("ceph", "osd", "pool", "ls").split():
        return
    run("ceph", "osd", "pool", "create", RBD_POOL, "8")
    run("rbd", "pool", "init", RBD_POOL)
    rbd("create", "full", "--size", f"{SIZE >> 20}M")
    fill(rbd_uri("full"))
    rbd("snap", "create", "full@template")
    rbd("snap", "protect", "full@template")


@contextlib.contextmanager
def rbd_clone() -> Iterator[str]:
    rbd("clone", f"{RBD_POOL}/full@template", f"{RBD_POOL}/clone")
    try:
        yield rbd_uri("clone")
    finally:
        rbd("rm", "--no-progress", "clone")


def first_writes(target: str, measured: Measured, whose: str) -> None:
    """On a fresh clone: one write in each untouched block, again, then 16 in each, again."""
    passes = {"64": (BLOCKS, NEXT_BLOCK), "1024": (1024, NEXT_BLOCK_AND_PAGE)}
    for name, (count, step) in passes.items():
        for again in ("", " again"):
            seconds = bench(target, count, step=step, write=True)
            measured.setdefault(f"{whose} {name} writes{again}", []).append(seconds)


def many_writes(target: str, measured: Measured, whose: str) -> None:
    for again in ("", " again"):
        seconds = bench(target, 1024, step=NEXT_BLOCK_AND_PAGE, write=True)
        measured.setdefault(f"{whose} 1024 over untouched{again}", []).append(seconds)


def reads(target: str, measured: Measured, whose: str, counts: tuple[int, int]) -> None:
    small, many = counts
    measured.setdefault(f"{whose} read QD1", []).append(bench(target, small, step=FAR))
    measured.setdefault(f"{whose} read QD32", []).append(bench(target, many, depth=32, step=FAR))
    measured.setdefault(f"{whose} sequential read", []).append(bench(target, 2 * BLOCKS, depth=2, size=BLOCK))


def sequential_write(target: str, measured: Measured, whose: str) -> None:
    measured.setdefault(f"{whose} sequential write", []).append(bench(target, BLOCKS, depth=2, size=BLOCK, write=True))


def measure_rados(rounds: int) -> Measured:
    need_rbd()
    measured: Measured = {}
    origin = template("rados")
    # One without a snapshot, which its writes would copy.
    rbd("create", "plain", "--size", f"{SIZE >> 20}M")
    with volume("rados") as full, qemu_nbd(rbd_uri("plain"), "raw", cache="none") as served:
        for target in (uri(full), rbd_uri("plain")):
            fill(target)
        for _ in range(rounds):
            for target, whose in ((uri(full), "ours"), (rbd_uri("plain"), "peer")):
                reads(target, measured, whose, RADOS_READS)
                sequential_write(target, measured, whose)
            reads(served, measured, "served peer", RADOS_READS)
    rbd("rm", "--no-progress", "plain")
    for _ in range(rounds):
        for passes in (first_writes, many_writes):
            with volume("rados", origin) as clone:
                passes(uri(clone), measured, "ours")
            with rbd_clone() as target:
                passes(target, measured, "peer")
    return measured


# Against qemu-nbd.


@contextlib.contextmanager
def qemu_nbd(source: str | Path, kind: str, cache: str = "writeback") -> Iterator[str]:
    """Serve a file, or what QEMU has a URI for."""
    socket = SCRATCH / f"{kind}.sock"
    socket.unlink(missing_ok=True)
    process = subprocess.Popen(["qemu-nbd", "-t", "-f", kind, "--cache", cache, "-k", str(socket), str(source)])
    try:
        wait_until(socket.exists)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.wait(60)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def overlay_writes(target: str, measured: Measured, whose: str) -> None:
    measured.setdefault(f"{whose} first writes", []).append(bench(target, 1024, step=NEXT_BLOCK_AND_PAGE, write=True))


def measure_files(rounds: int) -> Measured:
    measured: Measured = {}
    raw, overlay = SCRATCH / "raw", SCRATCH / "overlay.qcow2"
    run("qemu-img", "create", "-q", "-f", "raw", raw, str(SIZE))
    origin = template("disk")
    with volume("disk") as full, qemu_nbd(raw, "raw") as peer:
        for target in (uri(full), peer):
            fill(target)
        for _ in range(rounds):
            for target, whose in ((uri(full), "ours"), (peer, "peer")):
                reads(target, measured, whose, (8000, 20000))
                sequential_write(target, measured, whose)
    for _ in range(rounds):
        with volume("disk", origin) as clone:
            overlay_writes(uri(clone), measured, "ours")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", overlay)
        with qemu_nbd(overlay, "qcow2") as target:
            overlay_writes(target, measured, "peer")
    return measured


# Others.


def measure_snapshot(rounds: int, store: str = "disk", size: int = 100 << 30) -> Measured:
    """A snapshot while a client writes: how long it takes, and the longest that one write waited."""
    import nbd

    measured: Measured = {}
    with volume(store, size=size) as name:
        client = nbd.NBD()
        client.connect_unix(f"/run/snf-archipelago/{name}/nbd.sock")
        for number in range(rounds):
            end = threading.Event()
            pauses: list[float] = []
            writer = threading.Thread(target=_keep_writing, args=(client, size, end, pauses))
            writer.start()
            time.sleep(1.0)
            started = time.monotonic()
            do("snapshot", name, VOL_SNAPSHOT_NAME=f"{name}.{number}", VOL_SNAPSHOT_SIZE="1", EXTP_STORE=store)
            measured.setdefault("snapshot", []).append(time.monotonic() - started)
            time.sleep(0.5)
            end.set()
            writer.join(60)
            measured.setdefault("pause", []).append(max(pauses))
        client.shutdown()
    for number in range(rounds):
        assert command("snapshot", "remove", f"{name}.{number}", "--store", store).returncode == 0
    return measured


def measure_snapshot_in_rados(rounds: int) -> Measured:
    with apply.using_store(apply.site(), "rados", make=True):
        pass
    return measure_snapshot(rounds, "rados")


def _keep_writing(client: object, size: int, end: threading.Event, pauses: list[float]) -> None:
    write = client.pwrite  # type: ignore[attr-defined]
    data, offset = os.urandom(PAGE), 0
    while not end.is_set():
        started = time.monotonic()
        write(data, offset)
        pauses.append(time.monotonic() - started)
        offset = (offset + FAR) % size


def measure_memory(_rounds: int) -> Measured:
    """What a server needed at most, in MiB, for a volume of 1 TiB: many small requests all over it, and large ones."""
    with apply.using_store(apply.site(), "rados", make=True):
        pass
    return {store: [_memory(store)] for store in ("disk", "rados")}


def _memory(store: str) -> float:
    size = 1 << 40
    # The first page of each block: an object in Ceph's memory takes as much as its last byte is far.
    step = str(size // 20000 // BLOCK * BLOCK)
    with volume(store, size=size) as name:
        for count, length, more in ((20000, PAGE, ["-S", step]), (200, BLOCK, [])):
            for write in (["-w"], []):
                words = ["qemu-img", "bench", "-f", "raw", "-t", "none", "-c", str(count), "-d", "8", "-s", str(length)]
                run(*words, *more, *write, uri(name))
        status = Path(f"/proc/{server_pid(name)}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak
    return int(peak[1]) / 1024


def measure_import(rounds: int) -> Measured:
    """An import of 1 GiB of noise, beside reading it and beside sha256sum with a process for each processor."""
    measured: Measured = {}
    source = SCRATCH / "noise"
    take = ["archipelago", "image", "import", "--store", "disk"]
    parts = os.cpu_count() or 1
    run("sh", "-ec", f"head -c {1 << 30} /dev/urandom > {source}; cat {source} > /dev/null")
    share = (1 << 30) // parts // BLOCK
    hashing = " & ".join(
        f"dd if={source} bs=4M skip={share * part} count={share} status=none | sha256sum >/dev/null"
        for part in range(parts)
    )
    for number in range(rounds):
        for name, words in (
            ("read", ["dd", f"if={source}", "of=/dev/null", "bs=4M", "status=none"]),
            ("sha256sum", ["sh", "-c", f"{hashing} & wait"]),
            ("import", [*take, f"bench-noise-{number}", source]),
            ("import again", [*take, f"bench-noise-{number}-again", source]),
        ):
            started = time.monotonic()
            run(*words, timeout=900)
            measured.setdefault(name, []).append(time.monotonic() - started)
        for name in (f"bench-noise-{number}", f"bench-noise-{number}-again"):
            run("archipelago", "image", "remove", name, "--store", "disk")
        run("archipelago", "gc")
    source.unlink()
    return measured


MEASURES: dict[str, Callable[[int], Measured]] = {
    "files": measure_files,
    "rados": measure_rados,
    "snapshot": measure_snapshot,
    "rados-snapshot": measure_snapshot_in_rados,
    "memory": measure_memory,
    "import": measure_import,
}


def main() -> None:
    request = json.load(sys.stdin)
    SCRATCH.mkdir(exist_ok=True)
    measured = MEASURES[request["what"]](request["rounds"])
    print(json.dumps({"runs": measured, "medians": {name: statistics.median(v) for name, v in measured.items()}}))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: BSD-2-Clause
"""Volumes beside their peers: librbd's clones, qemu-nbd, qcow2, sha256sum. The figures of the storage layer."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ganeti_plugin import log
from tests.bench.figures import Figure
from tests.bench.place import Job, timed
from tests.place import done

INSIDE = "/src/tests/bench/volume_io.py"

#: The node's configuration for the benchmarks: beside the usual store one in Ceph, and one on the machine's own file
#: system. The usual one is on a node's root, an overlay, on which sync_file_range(2) does nothing.
PREPARE = """
cat > /etc/snf-ganeti/conf.d/bench.toml <<END
[archipelago]
stores.main = "files:/var/lib/snf-archipelago/store"
stores.disk = "files:/srv/shared/bench-store"
stores.rados = "rados:snf-archipelago"
END
install -d -o snf-archipelago -g snf-archipelago -m 750 /srv/shared/bench-store
[ -e /srv/shared/bench-store/store.json ] || archipelago store create disk
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure made of two measurements."""

    name: str
    ours: str
    peer: str
    beside: str
    most_ratio: float | None = None
    least_speedup: float | None = None


RADOS = (
    Row(name="64 first writes, one in each block", ours="ours 64 writes", peer="peer 64 writes",
        beside="librbd clone", least_speedup=8),
    Row(name="1024 writes over 64 untouched blocks", ours="ours 1024 over untouched",
        peer="peer 1024 over untouched", beside="librbd clone", least_speedup=2),
    Row(name="1024 writes over 64 untouched blocks", ours="ours 1024 over untouched",
        peer="ours 1024 over untouched again", beside="our second pass", most_ratio=1.5),
    Row(name="4 KiB read QD1", ours="ours read QD1", peer="peer read QD1", beside="librbd", most_ratio=1 / 0.8),
    Row(name="4 KiB read QD32", ours="ours read QD32", peer="peer read QD32", beside="librbd", most_ratio=1 / 0.4),
    # No targets: what NBD itself costs librbd, all of it in C.
    Row(name="4 KiB read QD1 by NBD", ours="ours read QD1", peer="served peer read QD1", beside="qemu-nbd, librbd"),
    Row(name="4 KiB read QD32 by NBD", ours="ours read QD32", peer="served peer read QD32", beside="qemu-nbd, librbd"),
    Row(name="4 MiB sequential read", ours="ours sequential read", peer="peer sequential read",
        beside="librbd", most_ratio=1 / 0.95),
    Row(name="4 MiB sequential read by NBD", ours="ours sequential read", peer="served peer sequential read",
        beside="qemu-nbd, librbd"),
    Row(name="4 MiB sequential write", ours="ours sequential write", peer="peer sequential write",
        beside="librbd", most_ratio=1 / 0.95),
)  # fmt: skip

FILES = (
    Row(name="4 KiB read QD1", ours="ours read QD1", peer="peer read QD1", beside="qemu-nbd", most_ratio=1 / 0.55),
    Row(name="4 KiB read QD32", ours="ours read QD32", peer="peer read QD32", beside="qemu-nbd", most_ratio=1 / 0.3),
    Row(name="4 MiB sequential read", ours="ours sequential read", peer="peer sequential read",
        beside="qemu-nbd", most_ratio=1 / 0.9),
    Row(name="4 MiB sequential write", ours="ours sequential write", peer="peer sequential write",
        beside="qemu-nbd", most_ratio=1 / 0.9),
    Row(name="1024 first writes over 64 blocks", ours="ours first writes", peer="peer first writes",
        beside="qcow2 overlay", most_ratio=1),
)  # fmt: skip


def _measured(what: str, rounds: int) -> dict[str, float]:
    _prepare()
    request = json.dumps({"what": what, "rounds": rounds})
    found = json.loads(done("/usr/bin/python3", INSIDE, timeout=1800, stdin=request))
    for name, values in found["runs"].items():
        log.info("  %s: %s", name, " ".join(f"{value:.3f}" for value in values))
    medians: dict[str, float] = found["medians"]
    return medians


def _figures(kind: str, rows: tuple[Row, ...], medians: dict[str, float], rounds: int) -> list[Figure]:
    return [
        Figure(
            name=f"{kind}: {row.name}{f' ({row.beside})' if row.beside.startswith('our') else ''}",
            value=medians[row.ours], peer=row.beside, peer_value=medians[row.peer],
            most_ratio=row.most_ratio, least_speedup=row.least_speedup, runs=rounds,
        )
        for row in rows
    ]  # fmt: skip


def _prepare() -> None:
    done("sh", "-ec", PREPARE)


def measure_files(rounds: int) -> list[Figure]:
    return _figures("files", FILES, _measured("files", rounds), rounds)


def measure_rados(rounds: int) -> list[Figure]:
    return _figures("rados", RADOS, _measured("rados", rounds), rounds)


def measure_clone_in_rados(rounds: int) -> list[Figure]:
    """A clone as a whole process, for maps of 1 GiB and 1 TiB with content in every block, beside `rbd clone`."""
    _prepare()
    # Prepares the peer's pool and its template, too.
    done("/usr/bin/python3", "/src/tests/bench/full_maps.py", "rados", timeout=600)
    jobs = [
        *(_clone_job(f"bench-{size}", mebibytes) for size, mebibytes in (("1g", 1 << 10), ("1t", 1 << 20))),
        Job(
            name="rbd clone",
            command=["rbd", "clone", "bench-rbd/full@template", "bench-rbd/timed"],
            cleanup="rbd rm --no-progress bench-rbd/timed >/dev/null",
        ),
    ]
    small, large, peer = timed(jobs, rounds=max(5, rounds))
    return [
        Figure(name="rados: clone of 1 TiB", value=large, peer="rbd clone", peer_value=peer, most_ratio=1),
        Figure(name="rados: clone of 1 TiB (ours)", value=large, peer="clone of 1 GiB", peer_value=small,
               most_ratio=1.5),
    ]  # fmt: skip


def _clone_job(origin: str, mebibytes: int) -> Job:
    name = "00000000-0000-4000-8000-0000000c104e.ext.disk0"
    values = {
        "VOL_NAME": name,
        "VOL_UUID": "00000000-0000-4000-8000-0000000c104e",
        "VOL_SIZE": str(mebibytes),
        "EXTP_PROVIDER": "archipelago",
        "EXTP_ACCESS": "userspace",
        "EXTP_STORE": "rados",
        "EXTP_ORIGIN": origin,
    }
    provider = "/usr/share/ganeti/extstorage/archipelago"
    exports = " ".join(f"{key}={value}" for key, value in values.items())
    remove = f"env {exports} {provider}/remove >/dev/null 2>&1 || true"
    return Job(name=origin, command=[f"{provider}/create"], environment=values, prepare=remove, cleanup=remove)


def measure_snapshot(rounds: int) -> list[Figure]:
    return _snapshot_figures("snapshot", "snapshot", rounds)


def measure_snapshot_in_rados(rounds: int) -> list[Figure]:
    return _snapshot_figures("rados: snapshot", "rados-snapshot", rounds)


def _snapshot_figures(name: str, what: str, rounds: int) -> list[Figure]:
    runs = max(rounds, 5)
    medians = _measured(what, runs)
    return [
        Figure(name=f"{name} of 100 GiB in use", value=medians["snapshot"], limit=0.5, runs=runs),
        Figure(name=f"{name} of 100 GiB in use: longest wait", value=medians["pause"], limit=0.1, runs=runs),
    ]


def measure_memory(rounds: int) -> list[Figure]:
    medians = _measured("memory", rounds)
    return [
        Figure(name=f"memory of a server, 1 TiB, {kind}", value=medians[store], unit="MiB", limit=120)
        for kind, store in (("files", "disk"), ("rados", "rados"))
    ]


def measure_import(rounds: int) -> list[Figure]:
    medians = _measured("import", rounds)
    slower = max(medians["read"], medians["sha256sum"])
    peer = "sha256sum" if slower == medians["sha256sum"] else "read"
    return [
        Figure(name="import of 1 GiB, hashed", value=medians["import"], peer=peer, peer_value=slower,
               most_ratio=1 / 0.8, runs=rounds),
        Figure(name="import of 1 GiB that is there", value=medians["import again"], peer=peer, peer_value=slower,
               most_ratio=1 / 0.8, runs=rounds),
    ]  # fmt: skip

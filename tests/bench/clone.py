# SPDX-License-Identifier: BSD-2-Clause
"""The clone: constant time whatever the image's size; and `attach`, which Ganeti calls seven times for one disk."""

from __future__ import annotations

from dataclasses import replace

from tests.bench.figures import Figure
from tests.bench.place import Job, has_image, timed
from tests.place import done

PROVIDER = "/usr/share/ganeti/extstorage/archipelago"
GIB = 1024**3
BLOCK = 4 * 1024**2

#: Makes a file with data in every block of 4 MiB: sparse on the node's disk, full for the map.
FILL = (
    "import os,sys; p,size=sys.argv[1],int(sys.argv[2]); f=os.open(p, os.O_CREAT|os.O_WRONLY|os.O_TRUNC); "
    "os.ftruncate(f,size); [os.pwrite(f, (b'%016d' % o)*256, o) for o in range(0, size, int(sys.argv[3]))]"
)

VOLUME = "00000000-0000-4000-8000-00000000beef.ext.disk0"


def environment(size_mib: int, origin: str | None) -> dict[str, str]:
    """What Ganeti sets for an action of the provider."""
    given = {
        "VOL_NAME": VOLUME,
        "VOL_UUID": "00000000-0000-4000-8000-00000000beef",
        "VOL_SIZE": str(size_mib),
        "EXTP_PROVIDER": "archipelago",
        "EXTP_ACCESS": "userspace",
    }
    return {**given, "EXTP_ORIGIN": origin} if origin else given


def exports(values: dict[str, str]) -> str:
    return "; ".join(f"export {name}='{value}'" for name, value in values.items()) + "; "


def import_image(name: str, size: int) -> None:
    """An image of `size` bytes with data in every block, unless it is there."""
    if has_image(name):
        return
    path = f"/var/tmp/{name}.raw"
    done("/usr/bin/python3", "-c", FILL, path, str(size), str(BLOCK))
    try:
        done("archipelago", "image", "import", name, path, "--format", "raw", timeout=3600)
    finally:
        done("rm", "-f", path)


def clone_job(name: str, size: int) -> Job:
    values = environment(size // 1024**2, name)
    quiet = ">/dev/null 2>&1 || true"
    remove = f"{exports(values)}{PROVIDER}/detach {quiet}; {PROVIDER}/remove {quiet}"
    return Job(name=name, command=[f"{PROVIDER}/create"], environment=values, prepare=remove, cleanup=remove)


def measure_clone(rounds: int) -> list[Figure]:
    """`create` with an origin, for a small and for a huge image, beside qemu-img's way to clone."""
    sizes = {"bench-1g": GIB, "bench-100g": 100 * GIB}
    for name, size in sizes.items():
        import_image(name, size)
    peer = Job(
        name="qemu-img create -b",
        command=[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "/var/tmp/base.raw",
            "-F",
            "raw",
            "/var/tmp/over.qcow2",
        ],
        prepare=f"truncate -s {100 * GIB} /var/tmp/base.raw",
        cleanup="rm -f /var/tmp/base.raw /var/tmp/over.qcow2",
    )
    huge = clone_job("bench-100g", 100 * GIB)
    ready = replace(huge, name="create, attach", command=["/bin/sh", "-ec", f"{PROVIDER}/create; {PROVIDER}/attach"])
    jobs = [*(clone_job(name, size) for name, size in sizes.items()), ready, peer]
    *ours, usable, theirs = timed(jobs, rounds=max(rounds, 5))
    figures = [
        Figure(
            name=f"clone of an image of {size // GIB} GiB", value=seconds, limit=0.3, runs=max(rounds, 5),
            peer="qemu-img create -b (100 GiB)", peer_value=theirs,
        )
        for size, seconds in zip(sizes.values(), ours, strict=True)
    ]  # fmt: skip
    return [*figures, Figure(name="clone of 100 GiB and its first attach", value=usable, runs=max(rounds, 5))]


def measure_attach(rounds: int) -> list[Figure]:
    """`attach` of a volume that is attached, beside a Python that does nothing."""
    values = environment(1024, None)
    enter = exports(values)
    end = f"cd {PROVIDER}; ./detach >/dev/null 2>&1 || true; ./remove >/dev/null 2>&1 || true"
    done("sh", "-c", f"{enter}{end}")
    done("sh", "-ec", f"{enter}cd {PROVIDER}; ./create; ./attach >/dev/null")
    try:
        jobs = [
            Job(name="attach", command=[f"{PROVIDER}/attach"], environment=values),
            Job(name="python3 -c pass", command=["/usr/bin/python3", "-Es", "-c", "pass"]),
        ]
        ours, theirs = timed(jobs, rounds=max(20, rounds))
    finally:
        done("sh", "-c", f"{enter}{end}")
    peer = "python3 -Es -c pass"
    return [Figure(name="attach of an attached volume", value=ours, peer=peer, peer_value=theirs, limit=0.06, runs=20)]

# SPDX-License-Identifier: BSD-2-Clause
"""What a store holds and saves, in numbers; also as the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from extstorage import catalog
from extstorage.errors import BrokenError, NoSuchVolumeError
from extstorage.marks import Marks
from extstorage.progress import Progress, untold
from extstorage.store import Store


class Stats(NamedTuple):
    """Sizes in bytes."""

    #: Both None where nobody knows, as in a Ceph cluster without a manager.
    total: int | None
    free: int | None
    volumes: int
    snapshots: int
    images: int
    broken: int
    #: What all volumes together seem to have.
    logical: int
    #: What layers and content blocks occupy.
    stored: int
    #: By how many maps a stored block of a frozen layer, or a content block, is used on the average.
    shared: float


def of_store(store: Store, progress: Progress = untold) -> Stats:
    """Look at every map, and ask for the size of everything that is stored."""
    kinds = dict.fromkeys(catalog.KINDS, 0)
    broken = logical = named = 0
    marks = Marks()
    names = store.names()
    for position, name in enumerate(names):
        progress(100 * position // len(names))
        try:
            head, count = store.scan_map(name, lambda scan: (scan.head, marks.add(scan)))
            kinds[catalog.kind_of(head, store.read_info(name))] += 1
        except NoSuchVolumeError:
            continue
        except BrokenError:
            broken += 1
            continue
        logical += 0 if head.read_only else head.size
        named += count
    stored, contents = store.stored()
    distinct = marks.frozen_blocks() + contents
    shared = round(named / distinct, 2) if distinct else 1.0
    space = store.space()
    total, free = (space.total, space.free) if space.is_known else (None, None)
    counts = kinds["volume"], kinds["snapshot"], kinds["image"]
    return Stats(total, free, *counts, broken, logical, stored, max(1.0, shared))


_HELP: Mapping[str, str] = {
    "total": "Bytes that the store could hold",
    "free": "Bytes that the store can still take",
    "volumes": "Volumes in the store",
    "snapshots": "Snapshots in the store",
    "images": "Images in the store",
    "broken": "Volumes, snapshots and images that can't be read",
    "logical": "Bytes that all volumes together seem to have",
    "stored": "Bytes that layers and content blocks occupy",
    "shared": "Maps that use a stored block, on the average",
}


def prometheus(stores: Mapping[str, Stats], requests: Iterable[tuple[str, str, Mapping[str, int]]]) -> str:
    """In the text format of Prometheus; `requests` are (volume, store, counters since its server started)."""
    lines = []
    for field, text in _HELP.items():
        metric = f"archipelago_store_{field}"
        lines += [f"# HELP {metric} {text}.", f"# TYPE {metric} gauge"]
        values = {name: getattr(found, field) for name, found in stores.items()}
        lines += [f'{metric}{{store="{name}"}} {value}' for name, value in values.items() if value is not None]
    by_kind: dict[str, list[str]] = {}
    for volume, store, counters in requests:
        for kind, count in counters.items():
            labels = f'volume="{volume}",store="{store}"'
            by_kind.setdefault(kind, []).append(f"archipelago_volume_{kind}_total{{{labels}}} {count}")
    for kind, samples in by_kind.items():
        lines += [f"# TYPE archipelago_volume_{kind}_total counter", *samples]
    return "\n".join(lines) + "\n"

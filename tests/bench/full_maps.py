# SPDX-License-Identifier: BSD-2-Clause
"""Makes, in a node, the maps of images of 1 GiB and 1 TiB with content in every block: the most that a map can hold.

Only the maps: what a clone costs does not depend on the blocks, and 1 TiB of them would not fit.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from extstorage import apply, maps
from extstorage.names import blocks_of
from extstorage.store import Info
from tests.bench.volume_io import need_rbd

SIZES = {"bench-1g": 1 << 30, "bench-1t": 1 << 40}


def main() -> None:
    need_rbd()
    with apply.using_store(apply.site(), sys.argv[1]) as store:
        for name, size in SIZES.items():
            if not store.exists(name):
                digests = [hashlib.sha256(b"%d" % index).digest() for index in range(blocks_of(size))]
                facts = Info(created=time.time(), image=True)
                store.create(name, maps.from_digests(size, bytes(16), digests), facts)


if __name__ == "__main__":
    main()

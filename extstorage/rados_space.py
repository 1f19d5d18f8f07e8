# SPDX-License-Identifier: BSD-2-Clause
"""What layers occupy in RADOS, and giving it back: whole ones, or the blocks that no map names any more.

Each block tells its own size. Of very many, some are asked, and the rest is taken to be alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from itertools import islice

from extstorage.bitmaps import Sample, indexes_of, runs_of
from extstorage.errors import BrokenError
from extstorage.maps import Source
from extstorage.names import BLOCK, PAGE
from extstorage.rados_contents import RadosContents
from extstorage.rados_layers import LAYERS, data_key, index_key, indexed, read_pages, stem_of
from extstorage.rados_pool import Change, Objects
from extstorage.store import Stored

#: Blocks that are removed at a time.
_PORTION = 10_000

#: Changes of an index at a time.
_MOST_RUNS = 1000

#: Blocks that are asked for what they occupy: of a layer, or of a table of content blocks; of all layers.
_SAMPLE = 256
_LARGE_SAMPLE = 8192


def remove_layer(objects: Objects, source: Source, patience: float) -> int:
    """Answers with the bytes freed. After `patience` seconds it stops: the rest is left to who goes on later.

    In portions, each of which is struck from the index: whoever goes on need not begin anew.
    """
    deadline = time.monotonic() + patience
    freed, left = 0, indexes_of(indexed(objects, source))
    while some := list(islice(left, _PORTION)):
        if time.monotonic() >= deadline:
            return freed
        freed += _free(objects, source, some)
        struck = Change().write(some[0], bytes(some[-1] - some[0] + 1))
        objects.apply(index_key(source), struck, force=True)
    objects.remove(index_key(source))
    objects.drop_entry(LAYERS, stem_of(source))
    return freed


def free_blocks(objects: Objects, source: Source, keep: int) -> int:
    """Remove the blocks that are not in the bitmap `keep`; answers with the bytes freed."""
    gone = indexed(objects, source) & ~keep
    freed = _free(objects, source, indexes_of(gone))
    left = runs_of(gone)
    while runs := list(islice(left, _MOST_RUNS)):
        change = Change()
        for first, end in runs:
            change.write(first, bytes(end - first))
        objects.apply(index_key(source), change, force=True)
    return freed


def _free(objects: Objects, source: Source, blocks: Iterable[int]) -> int:
    def free(index: int) -> int:
        size = _block_used(objects, source, index)
        return size if objects.remove(data_key(source, index)) else 0

    return sum(objects.parallel(free, blocks))


def used(objects: Objects, source: Source) -> int:
    """The bytes that a layer occupies."""
    sample: Sample[None] = Sample(_SAMPLE)
    sample.add(None, indexed(objects, source))
    asked = (index for _, index in sample.chosen)
    return sample.sum_of(objects.parallel(partial(_block_used, objects, source), asked))


def stored(objects: Objects, sources: list[Source], contents: RadosContents) -> Stored:
    """An index is read for each layer; asking each of its blocks would take as long as a collection of them all."""
    blocks: Sample[Source] = Sample(_LARGE_SAMPLE)
    for source, bits in zip(sources, objects.parallel(partial(indexed, objects), sources), strict=True):
        blocks.add(source, bits)
    occupied = blocks.sum_of(objects.parallel(lambda one: _block_used(objects, *one), blocks.chosen))
    count = 0
    for digests in contents.digests():
        asked = digests[:: max(1, len(digests) // _SAMPLE)]
        sizes = sum(objects.parallel(contents.used, asked))
        occupied += sizes * len(digests) // max(1, len(asked))
        count += len(digests)
    return Stored(occupied, count)


def _block_used(objects: Objects, source: Source, index: int) -> int:
    try:
        owned, zeros = read_pages(objects, data_key(source, index)) or (0, 0)
    except BrokenError:
        return BLOCK
    return (owned & ~zeros).bit_count() * PAGE

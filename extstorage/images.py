# SPDX-License-Identifier: BSD-2-Clause
"""Making an image from a disk that was judged: its blocks are named by content, stored, and listed by a map.

The map appears in one step, after the source turned out to be what it was judged to be and all blocks are durable.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping

from extstorage import apply, catalog, intake, maps, streams
from extstorage.errors import AlreadyThereError
from extstorage.names import check_name, new_id
from extstorage.progress import Progress
from extstorage.servers import Site
from extstorage.sources import DiskSource
from extstorage.space import check_room
from extstorage.store import Info, Store
from extstorage.streams import Given, Terms
from ganeti_plugin.errors import InputError

PREFIX = "import-"
MOST_PROPERTIES = 256
LONGEST_VALUE = 16384

#: Bytes of all together as JSON: they travel to the server of a volume in one line.
ALL_PROPERTIES = 48 << 10


class BadPropertyError(InputError):
    template = "the property {text!r} is not acceptable: {reason}"


def parse_properties(texts: list[str]) -> dict[str, str]:
    """KEY=VALUE as given on the command line; names are kept in upper case, as snf-image compares them."""
    found = {}
    for text in texts[: MOST_PROPERTIES + 1]:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
            raise BadPropertyError(text=text[:80], reason="it must be NAME=VALUE, the name of letters, digits and '_'")
        if len(value) > LONGEST_VALUE or "\0" in value:
            raise BadPropertyError(text=text[:80], reason="the value is too long or holds a NUL")
        if name.upper() in found:
            raise BadPropertyError(text=text[:80], reason="it is given more than once")
        found[name.upper()] = value
    if len(found) > MOST_PROPERTIES:
        raise BadPropertyError(text="", reason=f"there are more than {MOST_PROPERTIES}")
    if len(json.dumps(found)) > ALL_PROPERTIES:
        raise BadPropertyError(text="", reason=f"all together they are longer than {ALL_PROPERTIES} bytes of JSON")
    return found


def import_image(
    site: Site, name: str, given: Given, terms: Terms, properties: Mapping[str, str], progress: Progress
) -> None:
    """Make the image `name` from a file, a URL or a stream. `progress` is called with per cents."""
    with streams.opened(given, terms) as source, apply.using_store(site) as store:
        import_from(store, name, source, properties, progress)


def import_from(store: Store, name: str, source: DiskSource, properties: Mapping[str, str], progress: Progress) -> None:
    """Make the image `name` from any source. What is in the store already is not stored again.

    When the source is refused, nothing is left but blocks for the next collection; when it was interrupted, the next
    import of the same unchanged source to the same name goes on.
    """
    check_name(name, "the image name", room=len(PREFIX))
    if store.exists(name):
        intake.clear(store, f"{PREFIX}{name}")
        raise _already_there(store, name)
    check_room(store)
    with intake.taken_in(store, f"{PREFIX}{name}", source, progress) as (size, digests), store.locked():
        if store.exists(name):
            raise _already_there(store, name)
        facts = Info(created=time.time(), image=True, properties=dict(properties))
        store.create(name, maps.from_digests(size, new_id(), digests), facts)
    progress(100)


def is_interrupted(store: Store, name: str) -> bool:
    """Whether an import to this name left something with which the next one of the same source goes on."""
    return intake.is_pending(store, f"{PREFIX}{name}")


def _already_there(store: Store, name: str) -> AlreadyThereError:
    kind = catalog.kind_of(store.read_heads(name), store.read_info(name))
    return AlreadyThereError(name=name, store=store.title, what=kind)

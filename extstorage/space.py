# SPDX-License-Identifier: BSD-2-Clause
"""How full the stores are, and what follows from it, before guests hit a full one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from extstorage.names import MEBIBYTE
from extstorage.store import Space, Store
from ganeti_plugin import config
from ganeti_plugin.errors import StateError
from ganeti_plugin.log import warning


class NearlyFullError(StateError):
    template = "the store {store} is {percent} % full, and from {limit} % on nothing new is made in it"
    hint = "'archipelago gc' frees what nothing needs; the limit is the setting archipelago.space_refuse"


class Usage(NamedTuple):
    """One store."""

    name: str
    space: Space | None
    #: Why it can't be asked.
    fault: str = ""

    @property
    def percent(self) -> int:
        """How full it is, rounded up: what is full shall not look as if it were not. 0 where nobody knows."""
        if self.space is None:
            return 100
        if not self.space.is_known:
            return 0
        return -(-100 * (self.space.total - max(0, self.space.free)) // self.space.total)


def check_room(store: Store) -> None:
    """Before something new is made in a store: raises NearlyFullError above one threshold, warns above the other."""
    settings = config.load().archipelago
    percent = Usage(store.title, store.space()).percent
    if percent >= settings.space_refuse:
        raise NearlyFullError(store=store.title, percent=percent, limit=settings.space_refuse)
    if percent >= settings.space_warn:
        warning("the store %s is %d %% full", store.title, percent)


def complaints(usages: list[Usage]) -> Iterator[str]:
    """What an administrator should know of the stores."""
    settings = config.load().archipelago
    for usage in usages:
        if usage.space is None:
            yield f"the store {usage.name!r} can't be used: {usage.fault}"
        elif usage.percent >= settings.space_warn:
            refused = ", so nothing new is made in it" if usage.percent >= settings.space_refuse else ""
            left = f"{usage.space.free // MEBIBYTE} MiB left"
            yield f"the store {usage.name!r} is {usage.percent} % full ({left}){refused}"

# SPDX-License-Identifier: BSD-2-Clause
"""A store that is nearly full takes nothing new, and says so before guests notice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from extstorage import apply, space
from extstorage.plan import CreatePlan
from extstorage.servers import Site
from extstorage.space import NearlyFullError, Usage
from extstorage.store import Space
from ganeti_plugin import config
from ganeti_plugin.settings import Archipelago
from tests.datapath.memory_store import MemoryStore


@pytest.mark.parametrize(
    ("total", "free", "percent"),
    [(1000, 1000, 0), (1000, 500, 50), (1000, 1, 100), (1000, 9, 100), (1000, -5, 100), (0, 0, 0)],
)
def test_fullness_is_rounded_up(total: int, free: int, percent: int) -> None:
    assert Usage("x", Space(total, free)).percent == percent


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store of 1000 blocks with the usual thresholds; `store.left` are free."""
    found = MemoryStore()
    settings = SimpleNamespace(archipelago=Archipelago())
    monkeypatch.setattr(config, "load", lambda: settings)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("extstorage.stores.open_store", lambda *_arguments, **_options: found)
    return found


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(MemoryStore, "space", lambda _self: Space(1000, free))


def test_nothing_new_is_made_in_a_nearly_full_store(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site({"main": "files:/s"}, "main", "nobody")
    plan = CreatePlan("a", 4 << 20, "", "", adopt=False)
    leave(monkeypatch, 200)
    apply.create(site, plan)
    assert "80 % full" in capsys.readouterr().err
    leave(monkeypatch, 50)
    with pytest.raises(NearlyFullError, match="95 % full"):
        apply.create(site, plan._replace(volume="b"))
    apply.create(site, plan)  # what is there already is no news
    assert store.names() == ["a"]
    assert list(space.complaints(apply.usages(site))) == [
        "the store 'main' is 95 % full (0 MiB left), so nothing new is made in it"
    ]

# SPDX-License-Identifier: BSD-2-Clause
"""Renaming, withdrawing and sharing images, over the stores that need no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from extstorage import catalog, gallery
from extstorage.errors import AlreadyThereError, BadNameError, HeldError, NoSuchVolumeError, WithdrawnError
from extstorage.files_store import create_store
from extstorage.store import Info, Store
from tests.datapath.memory_store import MemoryStore

SIZE = 1 << 20


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """With an image, and a volume."""
    made: Store = create_store(tmp_path / "store") if request.param == "files" else MemoryStore()
    catalog.create_volume(made, "volume", SIZE)
    frozen = made.read_map("volume")._replace(read_only=True)
    made.create("image", frozen, Info(created=1.0, image=True, properties={"USERS": "ann"}))
    return made


def test_a_renamed_image_is_the_same(store: Store) -> None:
    catalog.create_volume(store, "clone", SIZE, origin="image")
    before = store.read_map("image")
    gallery.rename(store, "image", "golden")
    assert store.read_map("golden") == before
    assert store.read_info("golden").properties == {"USERS": "ann"}
    assert sorted(store.names()) == ["clone", "golden", "volume"]
    catalog.create_volume(store, "another", SIZE, origin="golden")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("image", "volume", AlreadyThereError),
        ("image", "image", AlreadyThereError),
        ("image", "../x", BadNameError),
        ("volume", "x", NoSuchVolumeError),
        ("nothing", "x", NoSuchVolumeError),
    ],
)
def test_renamings_that_are_none(store: Store, old: str, new: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        gallery.rename(store, old, new)
    assert sorted(store.names()) == ["image", "volume"]


def test_what_is_attached_keeps_its_name(store: Store) -> None:
    lock = store.lock_volume("image", shared=True)
    with pytest.raises(HeldError):
        gallery.rename(store, "image", "golden")
    lock.release()
    gallery.rename(store, "image", "golden")


def test_a_withdrawn_image_is_not_cloned(store: Store) -> None:
    catalog.create_volume(store, "clone", SIZE, origin="image")
    gallery.share(store, "image", shared=False)
    with pytest.raises(WithdrawnError, match="archipelago image share image"):
        catalog.create_volume(store, "another", SIZE, origin="image")
    assert not store.exists("another")
    assert catalog.items(store, "image")[0].facts == Info(1.0, image=True, properties={"USERS": "ann"}, shared=False)
    # What is there is there: Ganeti may repeat the creation of a disk.
    catalog.create_volume(store, "clone", SIZE, origin="image")
    gallery.share(store, "image", shared=True)
    catalog.create_volume(store, "another", SIZE, origin="image")


def test_only_images_are_shared(store: Store) -> None:
    with pytest.raises(NoSuchVolumeError):
        gallery.share(store, "volume", shared=False)

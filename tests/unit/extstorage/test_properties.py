# SPDX-License-Identifier: BSD-2-Clause
"""Which volume a disk is, as Ganeti names disks to an OS definition."""

from __future__ import annotations

from pathlib import Path

import pytest

from extstorage import catalog, devices
from extstorage.errors import BadNameError
from extstorage.properties import NotOursError, volume_of
from extstorage.servers import Site
from extstorage.store import Info
from tests.datapath.memory_store import MemoryStore

NAME = "11111111-2222-3333-4444-555555555555.ext.disk0"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    stores = {"main": f"files:{tmp_path}/store"}
    return Site(stores, "main", "nobody", run=tmp_path / "run", devices=tmp_path / "devices")


def test_a_name_is_itself(site: Site) -> None:
    assert volume_of(site, NAME) == NAME


@pytest.mark.parametrize("ending", ["", ",file.reconnect-delay=30"])
def test_the_socket_of_a_uri_names_the_volume(site: Site, ending: str) -> None:
    assert volume_of(site, f"nbd+unix:///?socket={site.socket(NAME)}{ending}") == NAME


@pytest.mark.parametrize(
    "disk",
    [
        "nbd+unix:///?socket=/run/elsewhere/volume/nbd.sock",
        "nbd+unix:///?socket={run}/volume/control.sock",
        "nbd+unix:///?socket={run}/../x/nbd.sock",
        "nbd+unix:///?socket={run}/a/nbd.sock&socket={run}/b/nbd.sock",
        "nbd+unix:///",
        "/dev/null",
        "/no/such/device",
    ],
)
def test_what_is_not_ours(site: Site, disk: str) -> None:
    with pytest.raises(NotOursError) as caught:
        volume_of(site, disk.format(run=site.run))
    assert caught.value.exit_status == 2


def test_a_name_that_is_none(site: Site) -> None:
    with pytest.raises(BadNameError):
        volume_of(site, f"nbd+unix:///?socket={site.run}/-x/nbd.sock")


def test_a_device_is_the_volume_s_whose_file_it_stands_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an old note in a directory says."""
    owners = {NAME: "/dev/null", "other": ""}
    for name in owners:
        site.device_directory(name).mkdir(parents=True)
    monkeypatch.setattr(devices, "device_of", lambda _site, name: owners[name])
    assert volume_of(site, "/dev/null") == NAME


def test_a_clone_has_its_own_copy() -> None:
    store = MemoryStore()
    catalog.create_volume(store, "first", 1 << 20)
    head = store.read_map("first")
    store.create("golden", head._replace(read_only=True), Info(created=1.0, image=True, properties={"USERS": "debian"}))
    catalog.create_volume(store, "clone", 1 << 20, origin="golden")
    catalog.remove(store, "golden")
    assert store.read_info("clone").properties == {"USERS": "debian"}

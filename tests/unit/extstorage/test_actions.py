# SPDX-License-Identifier: BSD-2-Clause
"""What a script answers when something is wrong with the node: Ganeti must never take a volume for gone that is not."""

from __future__ import annotations

import errno
import getpass
import sys
from pathlib import Path

import pytest

from extstorage import actions, answer, apply, catalog, devices, servers
from extstorage.errors import FullStoreError, HeldError, NoDeviceError, NoSuchVolumeError, UnreachableStoreError
from extstorage.names import MEBIBYTE
from extstorage.servers import Site
from ganeti_plugin.errors import CommandError, ConfigError

URI = "\nkvm:nbd+unix:///?socket="


@pytest.fixture(name="site")
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    stores = {"main": f"files:{tmp_path}/main"}
    site = Site(stores, "main", getpass.getuser(), {}, tmp_path / "run", tmp_path / "devices")
    monkeypatch.setattr(apply, "site", lambda: site)
    monkeypatch.setattr(servers, "_SYSTEMD", tmp_path / "nowhere")
    monkeypatch.setattr(answer, "RUN", str(site.run))
    monkeypatch.setattr(answer, "DEVICES", str(site.devices))
    with apply.using_store(site, make=True) as store:
        catalog.create_volume(store, "web", MEBIBYTE)
    return site


def call(action: str, monkeypatch: pytest.MonkeyPatch, volume: str = "web", **variables: str) -> None:
    for name, value in {"VOL_NAME": volume, "EXTP_ACCESS": "kernelspace", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [f"/provider/{action}"])
    actions.main()


def test_without_a_device_a_volume_is_attached_and_not_opened(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> str:
        raise NoDeviceError(name="web", reason="all loop devices are in use")

    monkeypatch.setattr(servers, "is_running", lambda *_: True)
    monkeypatch.setattr(devices, "start_device", refuse)
    call("attach", monkeypatch)
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{URI}{site.run}/web/nbd.sock")
    assert "all loop devices are in use" in printed.err
    with pytest.raises(NoDeviceError):
        call("open", monkeypatch, VOL_OPEN_EXCLUSIVE="True")


def test_without_a_server_a_volume_is_attached(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise CommandError(program="systemctl", reason="exit code 1", detail="no such unit", command="systemctl")

    monkeypatch.setattr(servers, "_start", refuse)
    call("attach", monkeypatch, EXTP_ACCESS="userspace")
    assert capsys.readouterr().out.startswith(f"{URI}{site.run}/web/nbd.sock")


def test_a_faulty_configuration_hides_no_volume(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> Site:
        raise ConfigError(faults="snf-ganeti.toml:3: not TOML")

    monkeypatch.setattr(apply, "site", refuse)
    call("attach", monkeypatch)
    assert capsys.readouterr().out.startswith(URI)
    for action in ("detach", "remove"):
        with pytest.raises(ConfigError):
            call(action, monkeypatch)


def test_a_volume_that_is_nowhere_is_not_attached(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSuchVolumeError):
        call("attach", monkeypatch, "other")
    call("remove", monkeypatch, "other")


def test_a_volume_of_a_store_that_this_node_does_not_know_is_neither_gone_nor_removed(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    monkeypatch.setattr(servers, "start", lambda *given: started.append(given[3]))
    call("attach", monkeypatch, "other", EXTP_ACCESS="userspace", EXTP_STORE="third")
    assert capsys.readouterr().out.startswith(URI)
    assert "no store 'third'" in started[0]
    with pytest.raises(UnreachableStoreError, match="no store 'third'"):
        call("remove", monkeypatch, "other", EXTP_STORE="third")
    call("remove", monkeypatch, "web", EXTP_STORE="third")


def test_what_a_full_store_cannot_take_is_kept_and_does_not_keep_a_volume_from_being_removed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    marks = site.run / "web" / "pages-0000-0001"
    marks.parent.mkdir(parents=True)
    marks.write_bytes(b"x")
    monkeypatch.setattr("extstorage.session.Session", refuse)
    with pytest.raises(FullStoreError, match="the store main is full"):
        call("detach", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "remove", held)
        with pytest.raises(HeldError):
            call("remove", monkeypatch)
    assert marks.exists()
    call("remove", monkeypatch)
    assert not marks.parent.exists()
    with apply.using_store(site) as store:
        assert store.names() == []


def held(_store: object, name: str) -> None:
    raise HeldError(name=name, holder="node2")

# SPDX-License-Identifier: BSD-2-Clause
"""How servers and devices are started and ended, without starting any."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from extstorage import attached, devices, nbd_device, servers
from extstorage.attached import Attached
from extstorage.servers import Site

#: Seconds that Ganeti's master waits for one call of a node (contract 2.9).
GANETI_WAITS = 900.0


def test_a_plain_server_has_nothing_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its group, it would go on in root's, and read what that may."""
    started: list[list[str]] = []
    monkeypatch.setattr(servers, "run", lambda command, **_: started.append([str(word) for word in command]))
    monkeypatch.setattr(servers, "is_running", lambda *_: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    site = Site({}, "main", getpass.getuser(), {}, tmp_path / "run", tmp_path / "devices")
    servers._start(site, "web", "main")
    (words,) = started
    assert words[words.index("--user") + 1] == site.user
    assert words[words.index("--group") + 1] == str(os.getgid())


def test_a_restarted_server_gets_a_new_watcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the one beside the device would keep the code of before an upgrade."""
    site = Site({}, "main", getpass.getuser(), {}, tmp_path / "run", tmp_path / "devices")
    served = Attached("web", "main", "exclusive", True, 7, "/dev/nbd1", "", {})
    done: list[str] = []
    monkeypatch.setattr(Site, "uses_units", True)
    monkeypatch.setattr(attached, "look", lambda *_: served)
    monkeypatch.setattr(servers, "restart", lambda *_: done.append("server"))
    monkeypatch.setattr(devices, "run", lambda command, **_: done.append(" ".join(command)))
    assert attached.restart(site, "web") == served
    assert done == ["server", "systemctl try-restart snf-archipelago-nbd@web.service"]


def test_a_detach_ends_before_ganeti_stops_waiting() -> None:
    """The slowest steps, one after the other: flush the device, wait for its users, flush the server."""
    others = 3 * 60.0
    slowest = servers.DEVICE_STOP_TIMEOUT + servers.IN_USE_TIMEOUT + servers.STOP_TIMEOUT
    assert slowest + others < GANETI_WAITS


def test_a_device_that_keeps_its_old_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(nbd_device, "resize", refuse)
    site = Site({}, "main", getpass.getuser(), {}, tmp_path / "run", tmp_path / "devices")
    devices.resize_device(site, "web", 1 << 30)
    site.device_directory("web").mkdir(parents=True)
    with pytest.raises(devices.OldSizeError, match="'web' has grown, but .*Invalid argument"):
        devices.resize_device(site, "web", 1 << 30)

# SPDX-License-Identifier: BSD-2-Clause
"""A file of Pithos from its export to a guest's disk, through the command, Ganeti's scripts and a server."""

from __future__ import annotations

import filecmp
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.extstorage.provider import STORE, command, do, new_name, refused, traces, uri

pytestmark = pytest.mark.timeout(180)

PLACE = Path("/srv/pithos-test")
SETTING = Path("/etc/snf-ganeti/conf.d/pithos-test.toml")


@pytest.fixture(autouse=True)
def _place() -> Iterator[None]:
    SETTING.parent.mkdir(parents=True, exist_ok=True)
    SETTING.write_text(f'[archipelago]\npithos = {{ test = "nfs:{PLACE}" }}\n')
    yield
    SETTING.unlink()
    shutil.rmtree(PLACE, ignore_errors=True)


def test_an_exported_image_is_cloned_where_it_lies(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    with source.open("wb") as stream:
        stream.truncate(24 << 20)
        for number in (0, 2, 5):
            stream.seek(number << 22)
            stream.write(random.Random(number).randbytes(1_000_000))
    assert command("image", "import", "exported", source).returncode == 0
    done = command("snapshot", "export-pithos", "exported", PLACE, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["origin"] == f"pithosmap://{made['map']}/{24 << 20}"
    assert json.loads(command("image", "show", "exported", "--json").stdout)["hash"] == made["map"]
    assert command("image", "remove", "exported").returncode == 0
    assert command("gc").returncode == 0
    before = {path.name for path in (STORE / "content").glob("??/??/*")}
    for volume, origin, size in (
        (new_name(), made["origin"], ""),
        # As Cyclades names files of old stores.
        (new_name(), made["map"], str(24 << 20)),
    ):
        do("create", volume, VOL_SIZE="32", EXTP_ORIGIN=origin, **({"EXTP_ORIGIN_SIZE": size} if size else {}))
        do("attach", volume)
        do("open", volume, VOL_OPEN_EXCLUSIVE="True")
        copy = tmp_path / "copy.raw"
        subprocess.run(["nbdcopy", uri(volume), copy], check=True)
        with copy.open("r+b") as stream:
            stream.truncate(24 << 20)
        assert filecmp.cmp(source, copy, shallow=False)
        do("detach", volume)
        do("remove", volume)
        assert traces(volume) == []
    assert {path.name for path in (STORE / "content").glob("??/??/*")} == before


def test_what_is_wrong_with_a_file_of_pithos_is_said() -> None:
    volume = new_name()
    assert "no Pithos store has a map" in refused("create", volume, VOL_SIZE="32", EXTP_ORIGIN="pithosmap://x/5")
    for origin in ("pithosmap://../../etc/5", "pithosmap://x/0", f"pithosmap://x/{2**63}"):
        assert "not a file of Pithos" in refused("create", volume, VOL_SIZE="32", EXTP_ORIGIN=origin)
    assert traces(volume) == []

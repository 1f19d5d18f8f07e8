# SPDX-License-Identifier: BSD-2-Clause
"""The configuration: defaults, precedence, and faults that are named all at once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ganeti_plugin import config
from ganeti_plugin.errors import ConfigError
from ganeti_plugin.settings import SECTIONS, Accel, Setting

TREE = Path(__file__).parents[3]


def write(directory: Path, text: str, name: str = "snf-ganeti.toml") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_without_files_every_setting_has_its_default(tmp_path: Path) -> None:
    loaded = config.load(tmp_path / "missing")
    assert loaded.image.helper_memory == 512
    assert loaded.image.accel is Accel.AUTO
    assert dict(loaded.archipelago.stores) == {"main": "files:/var/lib/snf-archipelago/store"}
    assert dict(loaded.network.uplinks) == {}


def test_values_are_read_as_their_types(tmp_path: Path) -> None:
    write(
        tmp_path,
        '[image]\nhelper_memory = 768\naccel = "tcg"\ndhcp_tags = ["a", "b"]\nimage_directory = "/srv/images"\n'
        '[network]\nuplinks = { "100" = "eth1", 200 = "eth2" }\n',
    )
    loaded = config.load(tmp_path)
    assert loaded.image.helper_memory == 768
    assert loaded.image.accel is Accel.TCG
    assert loaded.image.dhcp_tags == ("a", "b")
    assert loaded.image.image_directory == Path("/srv/images")
    assert dict(loaded.network.uplinks) == {"100": "eth1", "200": "eth2"}


def test_drop_ins_win_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path, "[image]\nhelper_memory = 256\nhelper_timeout = 10\n")
    write(tmp_path, "[image]\nhelper_memory = 300\n", "conf.d/10-site.toml")
    write(tmp_path, "[image]\nhelper_memory = 400\n", "conf.d/20-node.toml")
    write(tmp_path, "[image]\nhelper_memory = 999\n", "conf.d/30-node.toml.dpkg-old")
    loaded = config.load(tmp_path)
    assert (loaded.image.helper_memory, loaded.image.helper_timeout) == (400, 10)


def test_every_fault_is_reported_with_file_and_line(tmp_path: Path) -> None:
    main = write(tmp_path, '# mine\n[image]\nhelper_memroy = 1\nhelper_timeout = "soon"\n\n[imgae]\nx = 1\n')
    drop_in = write(tmp_path, "[image]\nhelper_memory = 1\n", "conf.d/x.toml")
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path)
    message = str(caught.value)
    assert f"{main}:3: image.helper_memroy: unknown setting; did you mean helper_memory?" in message
    assert f"{main}:4: image.helper_timeout: 'soon' is not a whole number (seconds)" in message
    assert f"{main}:6: unknown section [imgae]" in message
    assert f"{drop_in}:2: image.helper_memory: 1 is below the minimum of 128" in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[image]\nhelper_memory = true\n", "2: image.helper_memory: True is not a whole number (MiB)"),
        ("[image]\nhelper_memory = 1.5\n", "2: image.helper_memory: 1.5 is not a whole number (MiB)"),
        ("[image]\nhelper_memory = 99999999\n", "2: image.helper_memory: 99999999 is above the maximum of 65536"),
        ('[image]\naccel = "fast"\n', "2: image.accel: 'fast' is not one of auto, kvm, tcg"),
        ('[image]\ndhcp_tags = "auto"\n', "2: image.dhcp_tags: 'auto' is not a list of strings"),
        ("[image]\ndhcp_tags = [1]\n", "2: image.dhcp_tags: 1 is not a string"),
        ('[image]\nimage_directory = "images"\n', "2: image.image_directory: 'images' is not an absolute path"),
        ('[image]\nimage_directory = "/a/../b"\n', "2: image.image_directory: '/a/../b' is not an absolute path"),
        ('[archipelago]\nuser = "a\\nb"\n', "2: archipelago.user: a string may not hold a newline or NUL"),
        ('[archipelago]\nuser = "-x"\n', "2: archipelago.user: '-x' is not the name of a system user"),
        (
            '[network]\ngateway_mac = "01:00:00:00:00:00"\n',
            "2: network.gateway_mac: '01:00:00:00:00:00' is not the MAC",
        ),
        ('[image]\ndefault_nic_config = "dhcp+"\n', "2: image.default_nic_config: 'dhcp+' is not empty, dhcp, dhcpv6"),
        ("[network]\nuplinks = 3\n", "2: network.uplinks: 3 is not a table of strings"),
        ("[network.uplinks]\n100 = 3\n", "1: network.uplinks: 3 is not a string"),
        ("image.helper_memory = true\n", "1: image.helper_memory: True is not"),
        ("image = 3\n", "1: image is a section, to be written as [image]"),
        ("[image\n", "1: not TOML:"),
        ("[image]\nhelper_memory =\n", "2: not TOML:"),
    ],
)
def test_each_kind_of_fault(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    _, faults = config.inspect(tmp_path)
    assert len(faults) == 1
    assert str(faults[0]).startswith(f"{path}:{complaint}")


def test_an_unreadable_file_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "snf-ganeti.toml"
    path.write_bytes(b"\xff\xfe")
    _, faults = config.inspect(tmp_path)
    assert str(faults[0]).startswith(f"{path}: cannot be read")


def test_the_record_is_frozen() -> None:
    loaded = config.load(Path("/nonexistent"))
    with pytest.raises(AttributeError, match=r"image\.helper_memory is read only"):
        loaded.image.helper_memory = 3


def test_every_setting_has_help_and_a_type_that_can_be_read() -> None:
    settings = [setting for section in SECTIONS for setting in section.settings()]
    assert settings
    for setting in settings:
        assert isinstance(setting, Setting)
        assert setting.help.endswith("."), setting.name
        assert config.can_read(setting), setting.name
        assert bool(setting.pattern) == bool(setting.expected), setting.name
        values = setting.default.values() if isinstance(setting.default, Mapping) else [setting.default]
        for value in values:
            assert not setting.pattern or re.fullmatch(setting.pattern, str(value)), setting.name


def test_reading_a_file_that_sets_nothing_does_not_import_the_toml_reader(tmp_path: Path) -> None:
    write(tmp_path, "# helper_memory = 3\n\n[image]\n# more\n")
    code = (
        "import sys; from pathlib import Path; from ganeti_plugin import config;"
        f"config.load(Path({str(tmp_path)!r})); sys.exit('tomllib' in sys.modules or 'dataclasses' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=TREE, check=False).returncode == 0


def test_an_unknown_header_is_not_nothing() -> None:
    assert config.says_nothing("[image]\n# x\n")
    assert not config.says_nothing("[imgae]\n")
    assert not config.says_nothing("[image]\na = 1\n")

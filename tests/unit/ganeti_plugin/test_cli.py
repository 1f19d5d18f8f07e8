# SPDX-License-Identifier: BSD-2-Clause
"""The command snf-ganeti, and the texts that are made from the declared settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ganeti_plugin import __version__, cli, config, manual
from ganeti_plugin.errors import ConfigError
from ganeti_plugin.settings import SECTIONS

TREE = Path(__file__).parents[3]
SETTINGS = [(section.name, setting) for section in SECTIONS for setting in section.settings()]


def test_the_example_sets_nothing() -> None:
    assert config.says_nothing(manual.example())


def test_the_example_uncommented_is_the_default_configuration(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\w+ = )", "", manual.example(), flags=re.MULTILINE)
    (tmp_path / "snf-ganeti.toml").write_text(text, encoding="utf-8")
    configuration, faults = config.inspect(tmp_path)
    assert faults == ()
    for section in configuration.sections():
        for setting in type(section).settings():
            assert section.values[setting.name] == setting.default, setting.name


@pytest.mark.parametrize(("section", "setting"), SETTINGS)
def test_the_manual_page_names_every_setting(section: str, setting: object) -> None:
    name = getattr(setting, "name", "")
    assert f".SH SECTION [{section}]" in manual.page()
    assert f".B {name}".replace("-", r"\-") in manual.page()


def test_show_prints_a_file_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "snf-ganeti.toml").write_text('[network]\nuplinks = { "100" = "eth1" }\n', encoding="utf-8")
    assert cli.main(["config", "show", "--directory", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert 'uplinks = { "100" = "eth1" }  # set' in shown
    (tmp_path / "snf-ganeti.toml").write_text(shown, encoding="utf-8")
    assert dict(config.load(tmp_path).network.uplinks) == {"100": "eth1"}


def test_show_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "--json", "--directory", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["image"]["helper_memory"] == 512
    assert {name: set(values) for name, values in shown.items()} == {
        section.name: {setting.name for setting in section.settings()} for section in SECTIONS
    }


def test_check_prints_each_fault_on_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "snf-ganeti.toml"
    path.write_text("[image]\na = 1\nb = 2\n[c]\n", encoding="utf-8")
    assert cli.main(["config", "check", "--directory", str(tmp_path)]) == ConfigError.exit_status
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:2", f"{path}:3", f"{path}:4"]


def test_check_says_what_it_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", "--directory", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no files in {tmp_path}: all defaults\n"
    (tmp_path / "snf-ganeti.toml").touch()
    assert cli.main(["config", "check", "--directory", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no faults in {tmp_path}/snf-ganeti.toml\n"


@pytest.mark.parametrize("arguments", [["--help"], ["config", "--help"], ["config", "show", "--help"], ["--version"]])
def test_help_and_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("arguments", [[], ["config"], ["config", "mend"], ["--directory"]])
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: snf-ganeti" in capsys.readouterr().err


def test_the_manual_page_of_the_command_names_its_actions_and_options() -> None:
    page = (TREE / "docs/man/snf-ganeti.8").read_text(encoding="utf-8").replace("\\-", "-")
    for word in (
        "config check",
        "config show",
        "config example",
        "config manual",
        "--json",
        "--directory",
        "--version",
    ):
        assert word in page, word


def test_the_version_is_the_same_everywhere() -> None:
    changelog = (TREE / "debian/changelog").read_text(encoding="utf-8")
    assert changelog.startswith(f"snf-ganeti ({__version__})")
    assert f'"snf-ganeti {__version__}"' in (TREE / "docs/man/snf-ganeti.8").read_text(encoding="utf-8")

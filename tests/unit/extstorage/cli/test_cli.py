# SPDX-License-Identifier: BSD-2-Clause
"""The command: fast to start, and what it prints can be read."""

from __future__ import annotations

import argparse
import contextlib
import sys
from types import ModuleType

import pytest

from extstorage import cli
from extstorage.cli import output
from extstorage.errors import BadStoreError
from tests.test_architecture import MODULES, imports, target_of

#: What only actions need; with these, each Tab would take twice as long.
HEAVY = {"extstorage.apply", "extstorage.session", "extstorage.volume", "extstorage.images", "ganeti_plugin.config"}


def test_help_and_completion_cost_the_parser_alone() -> None:
    seen: set[str] = set()
    waiting = ["extstorage.cli"]
    while waiting:
        module = waiting.pop()
        if module in MODULES and module not in seen:
            seen.add(module)
            waiting += [target_of(*pair) for pair in imports(MODULES[module], top_level_only=True)]
    assert len(seen) > 5
    assert not seen & HEAVY


@pytest.fixture(name="asked")
def _asked(monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """Instead of argcomplete: the parsers that it was given. The real one ends the process."""
    asked: list[argparse.ArgumentParser] = []
    fake = ModuleType("argcomplete")
    fake.autocomplete = asked.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "argcomplete", fake)
    monkeypatch.delitem(sys.modules, "extstorage.cli.completion", raising=False)
    monkeypatch.delattr(cli, "completion", raising=False)
    return asked


def test_a_tab_is_answered_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, asked: list[argparse.ArgumentParser]
) -> None:
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert cli.main([]) == 0
    assert len(asked) == 1


@pytest.mark.usefixtures("asked")
def test_a_tab_on_a_node_without_store_completes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from extstorage.cli import completion, items

    def refuse() -> None:
        raise BadStoreError(path="/store", reason="it is foreign")

    monkeypatch.setattr("extstorage.apply.site", refuse)
    assert items.volumes(prefix="w") == []
    assert completion.names("image") == []


def test_only_root_may_act(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(cli.NotRootError):
        cli.main(["volume", "list"])


def test_help_is_for_everybody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for line in ([], ["volume"]):
        assert cli.main(line) == 0
        assert "usage: archipelago" in capsys.readouterr().out


def test_what_is_no_command_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["device-sideways", "web"])
    assert "invalid choice" in capsys.readouterr().err


def test_a_table_has_columns_as_wide_as_their_cells(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows(("name", "size"), [{"name": "a-long-name", "size": 5 << 30}, {"name": "b", "size": 0}])
    assert capsys.readouterr().out.splitlines() == ["NAME         SIZE", "a-long-name  5.0 GiB", "b            0 B"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        *(("size", 1023, "1023 B"), ("used", 1 << 44, "16.0 TiB"), ("pid", 4096, "4096"), ("created", 0.0, "-")),
        *(("writer", True, "yes"), ("origin", "", "-"), ("properties", {"A": "b"}, "A=b"), ("properties", {}, "-")),
    ],
)
def test_a_value_is_shown_as_its_column_says(name: str, value: object, text: str) -> None:
    assert output.shown(name, value) == text


def test_progress_is_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with output.Meter("web", "copied") as meter:
        meter(50)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with contextlib.suppress(BadStoreError), output.Meter("web", "copied") as meter:
        for percent in (0, 50, 50, 10):
            meter(percent)
        meter(50, ", too soon")
        monkeypatch.setattr(output, "_OFTEN", 0.0)
        meter(50, ", 7 blocks")
        meter(50, ", 7 blocks")
        raise BadStoreError(path="/store", reason="it is away")
    # What is said next has a line of its own.
    lines = "\rweb:   0 % copied\033[K\rweb:  50 % copied\033[K\rweb:  50 % copied, 7 blocks\033[K\n"
    assert capsys.readouterr().err == lines
    monkeypatch.setenv("COLUMNS", "13")
    with output.Meter("web", "copied") as meter:
        meter(50, ", 1 MiB/s")
    assert capsys.readouterr().err == "\rweb:  50 % c\033[K\n"
    monkeypatch.delenv("COLUMNS")
    with output.Meter("web", "copied") as meter:
        meter(None, " so far: 4 MiB")
        meter(None, " so far: 8 MiB")
        meter(99)
    so_far = "\rweb: copied so far: 4 MiB\033[K\rweb: copied so far: 8 MiB\033[K"
    assert capsys.readouterr().err == f"{so_far}\rweb:  99 % copied\033[K\n"

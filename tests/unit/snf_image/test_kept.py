# SPDX-License-Identifier: BSD-2-Clause
"""Asking a disk's provider for the properties of its image."""

from __future__ import annotations

from pathlib import Path

import pytest

from ganeti_plugin.contract.os import OsDisk
from ganeti_plugin.errors import CommandError
from snf_image import kept

DISK = OsDisk(index=0, path="/dev/null", uri="nbd+unix:///?socket=/x,a=b", mode="rw", size=1, uuid=None)


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "archipelago"
    monkeypatch.setattr(kept, "PROVIDER", path)
    return path


def script(provider: Path, body: str) -> None:
    provider.write_text(f"#!/bin/sh\n{body}\n")
    provider.chmod(0o755)


def test_no_provider_no_properties(provider: Path) -> None:
    assert not provider.exists()
    assert kept.properties_of(DISK) == {}


def test_the_question_and_the_answer(provider: Path) -> None:
    """The URI where there is one: it names the volume without a look at the kernel."""
    script(provider, """printf '{"ASKED": "%s"}' "$*" """)
    assert kept.properties_of(DISK) == {"ASKED": "volume properties --json nbd+unix:///?socket=/x,a=b"}


def test_not_its_disk(provider: Path) -> None:
    script(provider, "exit 2")
    assert kept.properties_of(DISK) == {}


def test_a_provider_that_fails_is_not_silence(provider: Path) -> None:
    script(provider, "echo broken >&2; exit 1")
    with pytest.raises(CommandError, match="broken"):
        kept.properties_of(DISK)


@pytest.mark.parametrize("text", ["", "[]", '{"A": 1}', "{", "[" * 100_000])
def test_an_answer_that_is_none(provider: Path, text: str) -> None:
    (provider.parent / "text").write_text(text)
    script(provider, f"exec cat {provider.parent}/text")
    with pytest.raises(kept.AnswerError):
        kept.properties_of(DISK)

# SPDX-License-Identifier: BSD-2-Clause
"""The key of a saved state, and the command that restores one. Saving is tested in tests/real/snf_image."""

from __future__ import annotations

from pathlib import Path

import pytest

from ganeti_plugin.settings import Accel
from snf_image import machine, warm


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "qemu"
    path.write_bytes(b"program")
    monkeypatch.setattr(machine, "QEMU", path)
    return path


def command(memory: int = 512, *, is_restored: bool = False) -> list[str]:
    plain = machine.Machine(
        files=Path("/helper"), arguments="quiet", memory=memory, accel=Accel.TCG, is_restored=is_restored
    )
    return machine.command(plain)


def test_the_key_is_that_of_one_machine(qemu: Path) -> None:
    assert warm.key(command()) == warm.key(command())
    assert warm.key(command()) != warm.key(command(640))


def test_another_qemu_has_another_key(qemu: Path) -> None:
    before = warm.key(command())
    qemu.write_bytes(b"other program")
    assert warm.key(command()) != before


def test_a_restored_machine_is_the_same_machine(qemu: Path) -> None:
    assert command(is_restored=True) == [*command(), "-incoming", "fd:%fd2%"]


def test_the_channel_that_saving_leaves_open_is_in_the_command(qemu: Path) -> None:
    """warm.py exchanges exactly this word; were it to change, saving would wait for ever."""
    assert "socket,id=channel,fd=%fd0%" in command()
    assert "%fd1%" in " ".join(command())

# SPDX-License-Identifier: BSD-2-Clause
"""KVM is believed only after a proof, whose verdict is kept for this boot, QEMU and helper."""

from __future__ import annotations

from pathlib import Path

import pytest

from ganeti_plugin.settings import Accel
from snf_image import accel, locks, machine
from snf_image.accel import NoKvmError


class Proof:
    """Counts how often it is asked."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer
        self.count = 0

    def __call__(self) -> bool:
        self.count += 1
        return self.answer


@pytest.fixture(autouse=True)
def _node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kvm", "qemu"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(accel, "KVM", tmp_path / "kvm")
    monkeypatch.setattr(machine, "QEMU", tmp_path / "qemu")
    monkeypatch.setattr(locks, "DIRECTORY", tmp_path / "run")


def test_tcg_needs_no_proof() -> None:
    proof = Proof(True)
    assert accel.chosen(Accel.TCG, "build", proof) is Accel.TCG
    assert proof.count == 0


@pytest.mark.parametrize(("works", "expected"), [(True, Accel.KVM), (False, Accel.TCG)])
def test_auto_asks_once(works: bool, expected: Accel) -> None:
    proof = Proof(works)
    assert [accel.chosen(Accel.AUTO, "build", proof) for _ in range(3)] == [expected] * 3
    assert proof.count == 1
    assert accel.chosen(Accel.AUTO, "another build", proof) is expected
    assert proof.count == 2


def test_a_damaged_verdict_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / accel.VERDICT).write_text("nonsense")
    assert accel.chosen(Accel.AUTO, "build", Proof(True)) is Accel.KVM


def test_without_a_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").unlink()
    assert accel.chosen(Accel.AUTO, "build", Proof(True)) is Accel.TCG


def test_kvm_that_is_demanded_and_does_not_work() -> None:
    """V12: refuses with the reason."""
    with pytest.raises(NoKvmError, match="KVM does not work on this node"):
        accel.chosen(Accel.KVM, "build", Proof(False))

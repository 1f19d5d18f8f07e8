# SPDX-License-Identifier: BSD-2-Clause
"""Whether the helper VM runs under KVM or is emulated.

/dev/kvm may exist and hang every guest, so KVM is believed only after a helper VM said hello under it, within a
deadline. The verdict is kept until the node boots again or QEMU, the kernel or the helper changes; emulation has the
same isolation and is only slower (threat V12).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.errors import StateError
from ganeti_plugin.files import write_atomically
from ganeti_plugin.settings import Accel
from snf_image import locks, machine

KVM = Path("/dev/kvm")
VERDICT = "kvm-verdict"

#: Seconds that a guest under working KVM takes at most to say hello; it takes less than one.
PROOF_TIMEOUT = 6.0


class NoKvmError(StateError):
    template = "KVM does not work on this node"
    hint = "set accel = 'auto' or 'tcg' in [image]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found, for this `key` of boot, QEMU and helper."""

    key: str
    works: bool

    def encoded(self) -> bytes:
        return f"{self.key} {'yes' if self.works else 'no'}\n".encode("ascii")


def chosen(wanted: Accel, helper: str, proof: Callable[[], bool]) -> Accel:
    """The acceleration to use. `helper` names the helper's build; `proof` boots it under KVM."""
    if wanted is Accel.TCG:
        return Accel.TCG
    if _works(helper, proof):
        return Accel.KVM
    if wanted is Accel.KVM:
        raise NoKvmError
    return Accel.TCG


def _works(helper: str, proof: Callable[[], bool]) -> bool:
    if not os.access(KVM, os.R_OK | os.W_OK):
        return False
    path = locks.directory() / VERDICT
    key = _key(helper)
    known = _read(path)
    if known is not None and known.key == key:
        return known.works
    verdict = Verdict(key=key, works=proof())
    if not verdict.works:
        log.warning("KVM is there but does not run a helper VM: it is emulated")
    write_atomically(path, verdict.encoded(), mode=0o600, durable=False)
    return verdict.works


def _key(helper: str) -> str:
    status = machine.QEMU.stat()
    return f"{os.uname().release}/{status.st_size}/{status.st_mtime_ns}/{helper[:16]}"


def _read(path: Path) -> Verdict | None:
    try:
        key, answer = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return Verdict(key=key, works=answer == "yes")

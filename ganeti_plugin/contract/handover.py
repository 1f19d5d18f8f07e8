# SPDX-License-Identifier: BSD-2-Clause
"""The variables of a call that one process takes and another one acts on: a closed list, as none else is looked at.

Light, and without `typing`: whoever hands a call over wants to be faster than the one who acts on it.
"""

from __future__ import annotations

import os

_PASSED = (b"VOL_", b"EXTP_", b"SNF_GANETI_", b"DEBUG_LEVEL")


def variables() -> list[bytes]:
    """Those of this process, as NAME=VALUE."""
    return [name + b"=" + value for name, value in os.environb.items() if name.startswith(_PASSED)]


def take_over(given: list[bytes]) -> None:
    """Have these, and no others: nothing of what systemd told the process that this one comes from."""
    os.environb.clear()
    os.environb.update(dict(one.partition(b"=")[::2] for one in given))

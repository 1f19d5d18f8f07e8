# SPDX-License-Identifier: BSD-2-Clause
"""A call's variables pass from process to process as bytes, and nothing else does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ganeti_plugin.contract import handover


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environb)
    yield
    os.environb.clear()
    os.environb.update(before)


def test_only_what_belongs_to_a_call_passes() -> None:
    os.environb.clear()
    call = {b"VOL_NAME": b"web", b"EXTP_ORIGIN": b"a=b\xff\n", b"SNF_GANETI_DEBUG": b"1", b"DEBUG_LEVEL": b""}
    os.environb.update(call | {b"PATH": b"/bin", b"LISTEN_FDS": b"1"})
    given = handover.variables()
    os.environb.clear()
    os.environb[b"NOTIFY_SOCKET"] = b"/run/notify"
    handover.take_over(given)
    assert dict(os.environb) == call

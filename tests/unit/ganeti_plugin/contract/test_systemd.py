# SPDX-License-Identifier: BSD-2-Clause
"""What systemd says to a service; started by hand, nobody says anything."""

from __future__ import annotations

import os

import pytest

from ganeti_plugin.contract import systemd


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())}],
    ids=["none", "another's", "two"],
)
def test_a_program_started_by_hand_has_no_socket(environment: dict[str, str]) -> None:
    with pytest.raises(systemd.NoSocketError):
        systemd.passed_socket(environment)

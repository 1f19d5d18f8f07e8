# SPDX-License-Identifier: BSD-2-Clause
"""Every reason for which a test may be skipped, in one place. A skip anywhere else fails tests/test_architecture.py."""

from __future__ import annotations

from enum import StrEnum

import pytest


class Reason(StrEnum):
    """Why a test cannot say anything on this machine."""

    NO_KVM = "hardware virtualization does not work here, and this test is about it"
    NOT_ROOT = "this test is about what root may do that others may not, and it does not run as root"


def unless(condition: bool, reason: Reason) -> None:
    """Skip the running test unless `condition` holds."""
    if not condition:
        pytest.skip(reason.value)

# SPDX-License-Identifier: BSD-2-Clause
"""No test fails for being slow: hypothesis would call one flaky that took long once, on a machine that was busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# SPDX-License-Identifier: BSD-2-Clause
"""The one error of the guest side. Its sentence travels to the host and ends in front of the administrator."""

from __future__ import annotations


class TaskError(Exception):
    """The image or the request is not what a task needs; the run fails with this sentence."""

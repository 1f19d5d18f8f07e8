# SPDX-License-Identifier: BSD-2-Clause
"""What is logged of requests that failed."""

from __future__ import annotations

import sys
import traceback

import pytest

from extstorage import sentences
from extstorage.errors import FencedError


def told(error: Exception) -> str:
    """As nbdkit asks for it."""
    try:
        raise error
    except Exception:
        return "".join(traceback.format_exception(*sys.exc_info()))


def test_our_errors_are_a_sentence_and_others_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traceback, "format_exception", traceback.format_exception)
    sentences.install()
    fenced = FencedError(name="web")
    assert told(fenced) == str(fenced)
    assert "Traceback" in told(ValueError("a fault of ours"))

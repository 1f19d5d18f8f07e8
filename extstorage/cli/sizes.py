# SPDX-License-Identifier: BSD-2-Clause
"""Sizes as administrators write them."""

from __future__ import annotations

import re

from extstorage.errors import BadSizeError
from extstorage.names import check_size

HELP = "in bytes, or with K, M, G or T (powers of 1024)"

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse(text: str) -> int:
    """Raises BadSizeError."""
    found = re.fullmatch(r"([0-9]{1,20})([KMGT]?)(?:iB|B)?", text, re.ASCII)
    if not found:
        raise BadSizeError(size=repr(text[:40]), reason="a size is a number, perhaps followed by K, M, G or T")
    return check_size(int(found[1]) * _UNITS[found[2]])

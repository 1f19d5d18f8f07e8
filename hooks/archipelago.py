# SPDX-License-Identifier: BSD-2-Clause
"""What hooks must know of Archipelago, which is a package of its own and may not be installed."""

from __future__ import annotations

import importlib.util

#: The provider, and its old name.
PROVIDERS = ("archipelago", "vlmc")


def is_installed() -> bool:
    return importlib.util.find_spec("extstorage") is not None

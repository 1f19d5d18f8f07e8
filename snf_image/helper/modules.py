# SPDX-License-Identifier: BSD-2-Clause
"""Loads the kernel modules that are needed now, and no others.

The builder wrote, for each purpose ("boot", "xfs", ...), the files to load in their order: dependencies are resolved
when the helper is built, so there is no depmod, no modprobe and no search here.
"""

from __future__ import annotations

import os

from snf_image.helper import syscalls

#: One line a purpose: its name, then the module files in the order to load.
INDEX = "/lib/modules.index"

_loaded: set[str] = set()


def parse(text: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for words in (line.split() for line in text.splitlines()) if words}


def load(purpose: str) -> None:
    """Load what a purpose needs; nothing where the kernel has it built in."""
    with open(INDEX, encoding="ascii") as stream:
        files = parse(stream.read()).get(purpose, [])
    for path in files:
        if path not in _loaded and os.path.exists(path):
            syscalls.insert_module(path)
        _loaded.add(path)

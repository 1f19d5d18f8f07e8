# SPDX-License-Identifier: BSD-2-Clause
"""Completion in the shell, by argcomplete: it runs this program at each Tab, and nothing of it otherwise."""

from __future__ import annotations

import argparse
import contextlib

import argcomplete

from ganeti_plugin.errors import Error


def complete(parser: argparse.ArgumentParser) -> None:
    """Print what the word under the cursor may become, and end the process."""
    argcomplete.autocomplete(parser)


def names(kind: str, **known: object) -> list[str]:
    """The volumes, snapshots or images that there are. At a Tab nobody wants to hear of errors."""
    from extstorage import apply, catalog

    found: list[str] = []
    for name in [given] if (given := getattr(known.get("parsed_args"), "store", "")) else stores():
        with contextlib.suppress(Error, OSError), apply.using_store(apply.site(), name) as store:
            found += catalog.names_of(store, kind, str(known.get("prefix", "")))
    return found


def stores() -> list[str]:
    from extstorage import apply

    with contextlib.suppress(Error, OSError):
        return list(apply.site().stores)
    return []

# SPDX-License-Identifier: BSD-2-Clause
"""How the commands of one group are described to argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

Options = argparse.Namespace
Action = Callable[[Options], None]

#: Answers with the words that an argument may become; asked only by the shell's completion.
Completer = Callable[..., list[str]]

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it


class Group:
    """The actions on one kind of thing."""

    def __init__(self, commands: Commands, name: str, text: str) -> None:
        parser = commands.add_parser(name, help=text)
        parser.set_defaults(action=lambda _options: parser.print_help(), is_help=True)
        self._actions = parser.add_subparsers(title="actions", metavar="ACTION")

    def add(
        self, name: str, text: str, action: Action, *, json: bool = False, in_store: bool = True
    ) -> argparse.ArgumentParser:
        """One action; the caller adds its arguments. With `json`, it can print that instead of text."""
        return add_command(self._actions, name, text, action, json=json, in_store=in_store)


def add_command(
    commands: Commands, name: str, text: str, action: Action, *, json: bool = False, in_store: bool = True
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(action=action, is_help=False)
    if in_store:
        named = parser.add_argument(
            "--store", metavar="NAME", default="", help="the store, by its name in the configuration"
        )
        named.completer = _stores  # type: ignore[attr-defined]
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _stores(**_known: object) -> list[str]:
    from extstorage.cli import completion

    return completion.stores()


def argument(parser: argparse.ArgumentParser, name: str, text: str, completer: Completer) -> None:
    """A positional argument whose values the shell can complete."""
    added = parser.add_argument(name, help=text)
    added.completer = completer  # type: ignore[attr-defined]

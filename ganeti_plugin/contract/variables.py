# SPDX-License-Identifier: BSD-2-Clause
"""Reading a contract's environment variables: a missing or malformed one is named in the error, with the action."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ganeti_plugin.errors import MalformedVariableError, MissingVariableError


class Variables:
    """The environment of one call. `action` is what the error messages call it, for instance "create"."""

    def __init__(self, environment: Mapping[str, str], action: str) -> None:
        self.environment = environment
        self.action = action

    def required(self, name: str) -> str:
        """A value that must be there and must not be empty."""
        value = self.environment.get(name)
        if not value:
            raise MissingVariableError(action=self.action, name=name)
        return value

    def optional(self, name: str) -> str | None:
        """A value that may be absent; an empty one counts as absent, for Ganeti writes both."""
        return self.environment.get(name) or None

    def integer(self, name: str, *, minimum: int = 0) -> int:
        """A decimal number that must be there."""
        value = self.required(name)
        if not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) or int(value) < minimum:
            raise self.malformed(name, f"a whole number of at least {minimum}")
        return int(value)

    def matching(self, name: str, pattern: str, expected: str) -> str:
        """A value that must be there and match `pattern` from end to end; `expected` says so in words."""
        value = self.required(name)
        if not re.fullmatch(pattern, value, re.ASCII):
            raise self.malformed(name, expected)
        return value

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        """A value out of a closed list."""
        value = self.required(name)
        if value not in choices:
            raise self.malformed(name, f"one of {', '.join(choices)}")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """A list separated by spaces; absent means empty. Ganeti writes tags so."""
        return tuple(self.environment.get(name, "").split())

    def malformed(self, name: str, expected: str) -> MalformedVariableError:
        """The error for a value that is not as expected (to be raised by the caller)."""
        return MalformedVariableError(
            action=self.action, name=name, value=self.environment.get(name, "")[:200], expected=expected
        )

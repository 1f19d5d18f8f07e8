# SPDX-License-Identifier: BSD-2-Clause
"""The errors of the suite, sorted by what the caller can do about them.

An exception holds facts as fields; its class holds the sentence (`template`) and, where there is one, the next step
(`hint`). The outer wall (`entry.py`) turns them into one line on stderr and an exit status.
"""

from __future__ import annotations

from typing import ClassVar


class Error(Exception):
    """Base of every error that the suite raises on purpose.

    Keyword arguments become attributes and fill `template` and `hint`.
    """

    template: ClassVar[str] = "{message}"
    hint: ClassVar[str] = ""
    exit_status: ClassVar[int] = 1

    def __init__(self, **facts: object) -> None:
        super().__init__(facts)
        self.facts = facts

    def __getattr__(self, name: str) -> object:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        sentence = self.template.format(**self.facts)
        advice = str(self.facts.get("hint", "")) or self.hint.format(**self.facts)
        return f"{sentence} ({advice})" if advice else sentence


class InputError(Error):
    """The caller gave something wrong; nothing was changed. Repeating the same call is pointless."""

    exit_status = 2


class MissingVariableError(InputError):
    template = "{action}: the environment variable {name} is missing"
    hint = "{name} is set by Ganeti: start this program through Ganeti, or set it by hand"


class MalformedVariableError(InputError):
    template = "{action}: the environment variable {name} has the value {value!r}, which is not {expected}"


class ConfigError(InputError):
    """One or more faults of the configuration, each with its file and line."""

    template = "the configuration has faults: {faults}"
    hint = "run 'snf-ganeti config check'"


class StateError(Error):
    """The world is not as the action needs it (busy, missing, full); a later call may succeed."""


class CommandError(StateError):
    """A program of ours or of the system failed."""

    template = "{program} failed ({reason}): {detail}"
    hint = "repeat it with: {command}"


class IntegrityError(Error):
    """Stored data contradicts itself; a person must look."""

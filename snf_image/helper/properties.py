# SPDX-License-Identifier: BSD-2-Clause
"""The image's properties with the original's reading of them (snf-image 0.23.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from snf_image.helper.errors import TaskError

YES = ("yes", "true", "on", "1", "set")
NO = ("no", "false", "off", "0", "unset")


class Properties:
    """Names are case-insensitive. A doubtful boolean is yes, an empty one no, both with a warning."""

    def __init__(self, values: Mapping[str, str], warn: Callable[[str], None]) -> None:
        self._values = {name.upper(): value for name, value in values.items()}
        self._warn = warn

    def text(self, name: str) -> str | None:
        return self._values.get(name.upper())

    def words(self, name: str) -> list[str]:
        return (self.text(name) or "").split()

    def number(self, name: str) -> int | None:
        value = self.text(name)
        if value is None or not value.strip():
            return None
        if not value.strip().isascii() or not value.strip().isdigit() or len(value) > 9:
            raise TaskError(f"the property {name} is not a number")
        return int(value)

    def is_set(self, name: str) -> bool:
        value = self.text(name)
        if value is None:
            return False
        word = value.strip().lower()
        if word in YES:
            return True
        if not word:
            self._warn(f"the property {name} is empty, which is read as no")
            return False
        if word not in NO:
            self._warn(f"the property {name} has an unusual value, which is read as yes")
            return True
        return False

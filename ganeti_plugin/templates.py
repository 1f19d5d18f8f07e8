# SPDX-License-Identifier: BSD-2-Clause
"""Text templates: those of the package, unless the administrator put a file of the same name into /etc.

A placeholder is %%{name}, for neither nft nor the configuration files of guests use that form. A placeholder without
value and a value without placeholder are both errors, so that text and code cannot drift apart.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path

from ganeti_plugin.errors import InputError

SHIPPED = Path(__file__).parents[1] / "templates"
SITE = Path("/etc/snf-ganeti/templates")


class TemplateError(InputError):
    template = "the template {path} {fault}"
    hint = (
        "a copy in /etc/snf-ganeti/templates must have the placeholders of the one in /usr/share/snf-ganeti/templates"
    )


class _Template(string.Template):
    delimiter = "%%"


def find(name: str) -> Path:
    """The file of a template: the administrator's copy where there is one."""
    site = SITE / name
    return site if site.exists() else SHIPPED / name


def render(name: str, values: Mapping[str, str]) -> str:
    """The text of a template with its placeholders filled. Raises TemplateError."""
    path = find(name)
    try:
        template = _Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(path=path, fault=f"cannot be read: {error}") from None
    if not template.is_valid():
        raise TemplateError(path=path, fault="has a malformed placeholder")
    wanted = set(template.get_identifiers())
    for fault, names in (("lacks a value for", wanted - set(values)), ("does not use", set(values) - wanted)):
        if names:
            raise TemplateError(path=path, fault=f"{fault} {', '.join(sorted(names))}")
    return template.substitute(values)

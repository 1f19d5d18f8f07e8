# SPDX-License-Identifier: BSD-2-Clause
"""Texts made from the declared settings: the example file, the manual page, the listing of `config show`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from ganeti_plugin import __version__
from ganeti_plugin.config import Configuration
from ganeti_plugin.settings import SECTIONS, Setting

_PREAMBLE = """\
# Configuration of snf-ganeti on this node. See snf-ganeti.toml(5).
#
# Every setting is here, commented, with its default. Rather than editing this file, put your own settings into a file
# /etc/snf-ganeti/conf.d/NAME.toml: it wins over this one, and an upgrade has nothing to ask.
# Check with: snf-ganeti config check
"""


def plain(value: object) -> object:
    """A setting's value as the simple types that JSON and TOML know."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | float):
        return value
    return str(value)


def toml(value: object) -> str:
    """A setting's value as TOML."""
    simple = plain(value)
    if isinstance(simple, bool):
        return "true" if simple else "false"
    if isinstance(simple, dict):
        pairs = ", ".join(f"{toml(name)} = {toml(item)}" for name, item in simple.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(simple, list):
        return f"[{', '.join(toml(item) for item in simple)}]"
    if isinstance(simple, int | float):
        return str(simple)
    escaped = str(simple).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def type_name(setting: Setting) -> str:
    """The type of a setting in words, with its unit and limits."""
    kinds: Mapping[type, str] = {bool: "true or false", int: "whole number", float: "number", Path: "absolute path"}
    default = setting.default
    if isinstance(default, StrEnum):
        words = "one of " + ", ".join(member.value for member in type(default))
    elif isinstance(default, tuple):
        words = "list of strings"
    elif isinstance(default, Mapping):
        words = "table of strings"
    else:
        words = next((word for kind, word in kinds.items() if isinstance(default, kind)), "string")
    limits = [
        f"{word} {limit}" for word, limit in (("at least", setting.minimum), ("at most", setting.maximum)) if limit
    ]
    return ", ".join([words, *([setting.unit] if setting.unit else []), *limits])


def example() -> str:
    """The file that the package installs: every setting, commented."""
    return "\n".join([_PREAMBLE, *(_example_section(section.name, section.summary) for section in SECTIONS)])


def _example_section(name: str, summary: str) -> str:
    section = next(section for section in SECTIONS if section.name == name)
    lines = [f"# {summary}.", f"[{name}]", ""]
    for setting in section.settings():
        text = f"{setting.help} ({type_name(setting)})"
        lines += [f"# {line}" for line in textwrap.wrap(text, 116)]
        lines += [f"#{setting.name} = {toml(setting.default)}", ""]
    return "\n".join(lines)


def listing(configuration: Configuration) -> str:
    """The configuration in force, as a TOML file; what is not the default is marked."""
    lines: list[str] = []
    for section in configuration.sections():
        lines.append(f"[{section.name}]")
        for setting in section.settings():
            mark = "  # set" if setting.name in section.values else ""
            lines.append(f"{setting.name} = {toml(getattr(section, setting.name))}{mark}")
        lines.append("")
    return "\n".join(lines).rstrip()


def as_plain(configuration: Configuration) -> dict[str, dict[str, object]]:
    """The configuration in force, for JSON."""
    return {
        section.name: {setting.name: plain(getattr(section, setting.name)) for setting in section.settings()}
        for section in configuration.sections()
    }


def page() -> str:
    """The manual page snf-ganeti.toml(5)."""
    return "\n".join(_page_lines()) + "\n"


def _page_lines() -> Iterator[str]:
    yield f'.TH SNF-GANETI.TOML 5 "" "snf-ganeti {__version__}" "snf-ganeti"'
    yield from (".SH NAME", r"snf-ganeti.toml \- configuration of the snf-ganeti plugins on one node")
    yield from (".SH SYNOPSIS", ".I /etc/snf-ganeti/snf-ganeti.toml", ".br", ".I /etc/snf-ganeti/conf.d/*.toml")
    yield ".SH DESCRIPTION"
    yield (
        "TOML files. The main file is read first, then the drop-in files in the order of their names; a later file "
        "wins, setting by setting. A list or table replaces the earlier one as a whole. Names that do not exist and "
        "values of the wrong type are faults:"
    )
    yield from (
        r".B snf-ganeti config check",
        "lists them with file and line, and no plugin works until they are mended.",
    )
    for section in SECTIONS:
        yield f".SH SECTION [{section.name}]"
        yield f"{_roff(section.summary)}."
        yield from _page_settings(section.settings())
    yield from (".SH SEE ALSO", r".BR snf-ganeti (8)")


def _page_settings(settings: Iterable[Setting]) -> Iterator[str]:
    for setting in settings:
        yield from (".TP", f".B {_roff(setting.name)}", _roff(setting.help))
        yield f"Type: {_roff(type_name(setting))}. Default: {_roff(toml(setting.default))}."


def _roff(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq").replace("'", r"\(aq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped

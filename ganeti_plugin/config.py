# SPDX-License-Identifier: BSD-2-Clause
"""The configuration: /etc/snf-ganeti/snf-ganeti.toml, then the drop-ins /etc/snf-ganeti/conf.d/*.toml in sorted order.

A later file wins, setting by setting (a list or table replaces the earlier one as a whole). Unknown names and values
of the wrong type are faults; all of them are reported at once, each with its file and line. Reading costs nothing
beyond a look at the files where they say nothing: the TOML reader is imported only when one of them sets something.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ganeti_plugin.errors import ConfigError
from ganeti_plugin.settings import SECTIONS, Archipelago, Image, Network, Section, Setting

DIRECTORY = Path("/etc/snf-ganeti")
MAIN_FILE = "snf-ganeti.toml"
DROP_IN_DIRECTORY = "conf.d"

_HEADERS = frozenset(f"[{section.name}]" for section in SECTIONS)


class Configuration(NamedTuple):
    """Every section, frozen."""

    archipelago: Archipelago
    image: Image
    network: Network

    def sections(self) -> Iterable[Section]:
        return (self.archipelago, self.image, self.network)


class Fault(NamedTuple):
    """One thing that is wrong with the configuration. `line` is 0 when it is not known."""

    file: Path
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{place}: {self.message}"


def load(directory: Path | None = None) -> Configuration:
    """Read the configuration. Raises ConfigError that names every fault."""
    configuration, faults = inspect(directory)
    if faults:
        raise ConfigError(faults="; ".join(str(fault) for fault in faults))
    return configuration


def inspect(directory: Path | None = None) -> tuple[Configuration, tuple[Fault, ...]]:
    """Read the configuration; answer with what could be read and every fault."""
    values: dict[str, dict[str, object]] = {section.name: {} for section in SECTIONS}
    faults: list[Fault] = []
    for path in files(DIRECTORY if directory is None else directory):
        _read(path, values, faults)
    archipelago, image, network = Archipelago(values["archipelago"]), Image(values["image"]), Network(values["network"])
    return Configuration(archipelago, image, network), tuple(faults)


def files(directory: Path) -> list[Path]:
    """The files that exist, in the order in which they are read."""
    main = directory / MAIN_FILE
    drop_ins = directory / DROP_IN_DIRECTORY
    names = sorted(os.listdir(drop_ins)) if drop_ins.is_dir() else []
    found = [drop_ins / name for name in names if name.endswith(".toml") and not name.startswith(".")]
    return [main, *found] if main.exists() else found


def _read(path: Path, values: dict[str, dict[str, object]], faults: list[Fault]) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(path, 0, f"cannot be read: {error}"))
        return
    if says_nothing(text):
        return
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        faults.append(Fault(path, _line_of_syntax_error(str(error), text), f"not TOML: {error}"))
        return
    _judge(path, text, document, values, faults)


def says_nothing(text: str) -> bool:
    """Whether a file holds only comments, blank lines and headers of our sections."""
    return all(line.startswith("#") or line in _HEADERS for line in map(str.strip, text.splitlines()) if line)


def _judge(
    path: Path, text: str, document: Mapping[str, object], values: dict[str, dict[str, object]], faults: list[Fault]
) -> None:
    known = {section.name: section for section in SECTIONS}
    for name, table in document.items():
        if name not in known:
            expected = ", ".join(f"[{section}]" for section in known)
            faults.append(Fault(path, line_of(text, name, ""), f"unknown section [{name}]; there are {expected}"))
        elif not isinstance(table, dict):
            faults.append(Fault(path, line_of(text, name, ""), f"{name} is a section, to be written as [{name}]"))
        else:
            _judge_section(path, text, known[name], table, values[name], faults)


def _judge_section(
    path: Path,
    text: str,
    section: type[Section],
    table: Mapping[str, object],
    values: dict[str, object],
    faults: list[Fault],
) -> None:
    known = {setting.name: setting for setting in section.settings()}
    for name, raw in table.items():
        try:
            if name not in known:
                raise ValueError(_unknown(name, known))
            values[name] = converted(known[name], raw)
        except ValueError as error:
            line = line_of(text, section.name, name)
            faults.append(Fault(path, line, f"{section.name}.{name}: {error}"))


def _unknown(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"unknown setting; did you mean {near[0]}?" if near else "unknown setting"


def converted(setting: Setting, raw: object) -> object:
    """The value of a setting, as its type. Raises ValueError with what was expected."""
    return _reader(setting)(setting, raw)


def can_read(setting: Setting) -> bool:
    """Whether the type of the setting is one that a file can hold."""
    return any(isinstance(setting.default, base) for base in _CONVERTERS)


def _reader(setting: Setting) -> Callable[[Setting, object], object]:
    return next(convert for base, convert in _CONVERTERS.items() if isinstance(setting.default, base))


def _boolean(_setting: Setting, raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError(f"{_shown(raw)} is not true or false")
    return raw


def _integer(setting: Setting, raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise ValueError(f"{_shown(raw)} is not a whole number{_of_unit(setting)}")
    _check_range(setting, raw)
    return raw


def _number(setting: Setting, raw: object) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        raise ValueError(f"{_shown(raw)} is not a number{_of_unit(setting)}")
    _check_range(setting, raw)
    return float(raw)


def _check_range(setting: Setting, value: float) -> None:
    if setting.minimum is not None and value < setting.minimum:
        raise ValueError(f"{value} is below the minimum of {setting.minimum}")
    if setting.maximum is not None and value > setting.maximum:
        raise ValueError(f"{value} is above the maximum of {setting.maximum}")


def _of_unit(setting: Setting) -> str:
    return f" ({setting.unit})" if setting.unit else ""


def _choice(setting: Setting, raw: object) -> StrEnum:
    kind = type(setting.default)
    assert issubclass(kind, StrEnum)
    for member in kind:
        if member.value == raw:
            return member
    raise ValueError(f"{_shown(raw)} is not one of {', '.join(member.value for member in kind)}")


def _text(setting: Setting, raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{_shown(raw)} is not a string")
    if "\0" in raw or "\n" in raw:
        raise ValueError("a string may not hold a newline or NUL")
    if setting.pattern and not re.fullmatch(setting.pattern, raw, re.ASCII):
        raise ValueError(f"{_shown(raw)} is not {setting.expected}")
    return raw


def _path(setting: Setting, raw: object) -> Path:
    text = _text(setting, raw)
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"{_shown(raw)} is not an absolute path")
    return Path(text)


def _list(setting: Setting, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"{_shown(raw)} is not a list of strings")
    return tuple(_text(setting, item) for item in raw)


def _table(setting: Setting, raw: object) -> Mapping[str, str]:
    if not isinstance(raw, dict):
        raise ValueError(f"{_shown(raw)} is not a table of strings")
    return MappingProxyType({name: _text(setting, value) for name, value in raw.items()})


#: By the type of the default; bool before int and StrEnum before str, for they are subclasses.
_CONVERTERS: Mapping[type, Callable[[Setting, object], object]] = {
    bool: _boolean,
    int: _integer,
    float: _number,
    StrEnum: _choice,
    str: _text,
    Path: _path,
    tuple: _list,
    MappingProxyType: _table,
}


def _shown(raw: object) -> str:
    return repr(raw)[:80]


def line_of(text: str, section: str, name: str) -> int:
    """The line where a setting (or a section, when `name` is empty) stands; 0 when it is not found.

    The TOML reader gives no lines. This knows the forms that people write, and nothing but a message depends on it.
    """
    wanted = f"{section}.{name}" if name else section
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+([^\]]+)\]", line)
        key = re.match(r"""\s*([\w."' -]+?)\s*=""", line)
        if header:
            current = here = re.sub(r"""["'\s]""", "", header.group(1))
        elif key:
            here = f"{current}.{key.group(1)}".strip(".").replace('"', "").replace("'", "")
        else:
            continue
        if here == wanted or here.startswith(f"{wanted}."):
            return number
    return 0


def _line_of_syntax_error(message: str, text: str) -> int:
    place = re.search(r"\(at line (\d+),", message)
    return int(place.group(1)) if place else text.count("\n") + 1

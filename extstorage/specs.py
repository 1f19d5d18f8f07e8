# SPDX-License-Identifier: BSD-2-Clause
"""What a line of the table `archipelago.stores` means: where a store is.

    files:/ABSOLUTE/DIRECTORY
    rados:POOL[/NAMESPACE][?conf=FILE&user=NAME&keyring=FILE&lease=SECONDS]

A line that is not of such a form is refused with a sentence that says why.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from extstorage.errors import BadStoreSpecError, NoSuchStoreError
from extstorage.names import is_store_name

#: Seconds until a cluster that does not answer at all is given up, at the beginning and for commands to monitors.
#: A whole number: what python3-rados 18.2 calls an int it takes no float for (Cython 3 sees to that; 16.2 took one).
CONNECT_TIMEOUT = 15

_RADOS_OPTIONS = ("conf", "user", "keyring", "lease")


class FilesSpec(NamedTuple):
    """A directory."""

    directory: Path

    def __str__(self) -> str:
        return f"files:{self.directory}"


class RadosSpec(NamedTuple):
    """A namespace of a pool of a Ceph cluster."""

    pool: str
    namespace: str = ""
    conf: Path = Path("/etc/ceph/ceph.conf")
    user: str = "admin"
    #: Empty: where the Ceph configuration says.
    keyring: str = ""
    #: Seconds after which a silent holder of a volume is taken for dead.
    lease: float = 15.0

    def __str__(self) -> str:
        return f"rados:{self.pool}{'/' if self.namespace else ''}{self.namespace}"


Spec = FilesSpec | RadosSpec


def spec_of(table: Mapping[str, str], name: str) -> Spec:
    """The store of that name; raises NoSuchStoreError or BadStoreSpecError."""
    if name not in table:
        raise NoSuchStoreError(name=name, known=", ".join(table) or "none")
    return parse(table[name])


def parse(text: str) -> Spec:
    """What a line of the table means; raises BadStoreSpecError that says what is wrong with it."""
    kind, colon, rest = text.partition(":")
    if not colon or kind not in ("files", "rados"):
        raise BadStoreSpecError(spec=text[:200], reason="it begins neither with files: nor with rados:")
    return _files(text, rest) if kind == "files" else _rados(text, rest)


def _files(text: str, rest: str) -> FilesSpec:
    if not rest.startswith("/") or ".." in rest.split("/") or "\0" in rest:
        raise BadStoreSpecError(spec=text[:200], reason="after files: there must be an absolute directory")
    return FilesSpec(Path(rest))


def _rados(text: str, rest: str) -> RadosSpec:
    place, _, query = rest.partition("?")
    pool, slash, namespace = place.partition("/")
    if not is_store_name(pool):
        raise BadStoreSpecError(spec=text[:200], reason="after rados: there must be the name of a pool")
    if slash and not is_store_name(namespace):
        raise BadStoreSpecError(spec=text[:200], reason="after the slash there must be a namespace")
    options = parse_options(text, query, _RADOS_OPTIONS)
    lease = options.get("lease", "15")
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", lease, re.ASCII) or float(lease) < 1:
        raise BadStoreSpecError(spec=text[:200], reason="lease must be at least 1 second")
    usual = RadosSpec(pool, namespace)
    return usual._replace(
        conf=Path(options.get("conf", str(usual.conf))),
        user=options.get("user", usual.user),
        keyring=options.get("keyring", usual.keyring),
        lease=float(lease),
    )


def parse_options(text: str, query: str, known: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE&... at the end of a spec; names of files (conf, keyring) must be absolute."""
    options: dict[str, str] = {}
    for part in query.split("&") if query else []:
        name, _, value = part.partition("=")
        if name not in known:
            raise BadStoreSpecError(spec=text[:200], reason=f"there is no option {name!r}, only {', '.join(known)}")
        if name in options or not value:
            raise BadStoreSpecError(spec=text[:200], reason=f"the option {name} must be given once and with a value")
        if name in ("conf", "keyring") and not value.startswith("/"):
            raise BadStoreSpecError(spec=text[:200], reason=f"the option {name} must be an absolute path")
        options[name] = value
    return options


def oddities(table: Mapping[str, str], default: str) -> Iterator[str]:
    """A sentence for what is no fault of a store, and can't have been meant."""
    if default not in table:
        yield f"the setting default_store names {default!r}, which is not one of the stores"
    names: dict[object, list[str]] = {}
    for name, text in table.items():
        with contextlib.suppress(BadStoreSpecError, OSError):
            names.setdefault(_place(parse(text)), []).append(name)
    for several in names.values():
        if len(several) > 1:
            yield (
                f"the stores {' and '.join(several)} of the configuration are one place ({parse(table[several[0]])}), "
                "so what is there is listed and counted once for each name"
            )


def _place(spec: Spec) -> object:
    if isinstance(spec, RadosSpec):
        return spec.conf, spec.pool, spec.namespace
    status = spec.directory.stat()
    return status.st_dev, status.st_ino

# SPDX-License-Identifier: BSD-2-Clause
"""A call of an ExtStorage script as a record.

Ganeti does not reset the environment of these scripts: the node daemon's own variables are there too, and none of them
is looked at. Ganeti 3.0.2 and 3.1 agree (lib/storage/extstorage.py, `_ExtStorageEnvironment`).

A named tuple and not a dataclass: attach runs seven times for one disk, and dataclasses take longer to import than
attach has to run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from ganeti_plugin.contract.variables import Variables
from ganeti_plugin.errors import InputError

_PARAMETER = "EXTP_"


class Action(StrEnum):
    """The scripts of a provider; the name called is the action."""

    CREATE = "create"
    ATTACH = "attach"
    DETACH = "detach"
    REMOVE = "remove"
    GROW = "grow"
    SETINFO = "setinfo"
    VERIFY = "verify"
    SNAPSHOT = "snapshot"
    OPEN = "open"
    CLOSE = "close"


class Access(StrEnum):
    """How QEMU shall reach the disk: a block device of the kernel, or a URI."""

    KERNELSPACE = "kernelspace"
    USERSPACE = "userspace"


class UnknownActionError(InputError):
    template = "there is no ExtStorage action {name!r}"
    hint = "Ganeti calls {known}"


class ExtStorageCall(NamedTuple):
    """One call for one volume on one node."""

    action: Action
    #: "<uuid>.ext.disk<n>", given once and never changed; for an export "<volume>.snap" (VOL_NAME).
    volume: str
    #: UUID of Ganeti's disk object; None in snapshot (VOL_UUID).
    uuid: str | None = None
    #: The disk's own name, such as Cyclades' "snf-vol-12", if it has one (VOL_CNAME).
    cname: str | None = None
    #: MiB; in create the size, in grow the size before (VOL_SIZE).
    size: int | None = None
    #: MiB; in grow the size after, absolute (VOL_NEW_SIZE).
    new_size: int | None = None
    #: In setinfo: "originstname+<instance>" (VOL_METADATA).
    metadata: str | None = None
    #: In snapshot: the name of what is made (VOL_SNAPSHOT_NAME), and its size in MiB (VOL_SNAPSHOT_SIZE).
    snapshot: str | None = None
    snapshot_size: int | None = None
    #: In open: whether this node alone may write (VOL_OPEN_EXCLUSIVE).
    exclusive: bool | None = None
    #: EXTP_ACCESS; Ganeti always gives it, and its default is kernelspace.
    access: Access = Access.KERNELSPACE
    #: The other disk parameters, names in lower case (EXTP_<NAME>); "provider" and "access" are not among them.
    parameters: Mapping[str, str] = {}

    @classmethod
    def from_environment(cls, action: str, environment: Mapping[str, str] | None = None) -> ExtStorageCall:
        """Read the variables of a call; the process's own environment unless one is given."""
        if action not in set(Action):
            raise UnknownActionError(name=action, known=", ".join(Action))
        known = Action(action)
        variables = Variables(os.environ if environment is None else environment, known.value)
        sizes = known in (Action.CREATE, Action.GROW)
        snapshot = known is Action.SNAPSHOT
        return cls(
            action=known,
            volume=variables.required("VOL_NAME"),
            uuid=variables.optional("VOL_UUID"),
            cname=variables.optional("VOL_CNAME"),
            size=variables.integer("VOL_SIZE", minimum=1) if sizes else None,
            new_size=variables.integer("VOL_NEW_SIZE", minimum=1) if known is Action.GROW else None,
            metadata=variables.required("VOL_METADATA") if known is Action.SETINFO else None,
            snapshot=variables.required("VOL_SNAPSHOT_NAME") if snapshot else None,
            snapshot_size=variables.integer("VOL_SNAPSHOT_SIZE") if snapshot else None,
            exclusive=_boolean(variables, "VOL_OPEN_EXCLUSIVE") if known is Action.OPEN else None,
            access=_access(variables),
            parameters=_parameters(variables.environment),
        )


def _boolean(variables: Variables, name: str) -> bool:
    """Ganeti writes Python's own words."""
    return variables.one_of(name, ("True", "False")) == "True"


def _access(variables: Variables) -> Access:
    if variables.optional("EXTP_ACCESS") is None:
        return Access.KERNELSPACE
    return Access(variables.one_of("EXTP_ACCESS", tuple(access.value for access in Access)))


def _parameters(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The disk's parameters. Ganeti upper-cases their names and changes nothing else."""
    ours = {name: value for name, value in environment.items() if name.startswith(_PARAMETER)}
    lowered = {name[len(_PARAMETER) :].lower(): value for name, value in ours.items()}
    return {name: value for name, value in lowered.items() if name not in ("provider", "access")}

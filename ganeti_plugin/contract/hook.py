# SPDX-License-Identifier: BSD-2-Clause
"""A hook call of Ganeti as a record.

Ganeti resets a hook's environment to its own variables; in the post phase, GANETI_INSTANCE_* still hold the values from
before the operation, and GANETI_POST_INSTANCE_* the ones after it (Ganeti 3.0.2, lib/hooksmaster.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self

from ganeti_plugin.contract.variables import Variables

#: The one version of the interface that Ganeti has had since 2.0 (constants.HOOKS_VERSION).
VERSION = "2"

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"


class Phase(StrEnum):
    PRE = "pre"
    POST = "post"


class HookDisk(NamedTuple):
    """A disk that an ExtStorage provider made."""

    uuid: str
    provider: str
    #: VOL_NAME (GANETI_INSTANCE_DISKn_ID).
    volume: str


@dataclass(frozen=True, kw_only=True)
class HookCall:
    """One call of one hook on one node."""

    #: What happens, as the hook directories spell it: "instance-stop" (GANETI_HOOKS_PATH).
    path: str
    #: Before or after it (GANETI_HOOKS_PHASE).
    phase: Phase
    #: The operation, for instance "OP_INSTANCE_SHUTDOWN" (GANETI_OP_CODE).
    op_code: str
    #: The name of the object (GANETI_OP_TARGET); for an instance its name before the operation. None where it has none.
    target: str | None
    #: The cluster's name (GANETI_CLUSTER) and the master node's (GANETI_MASTER).
    cluster: str
    master: str
    #: The instance (GANETI_INSTANCE_NAME) and its primary node before the operation (GANETI_INSTANCE_PRIMARY).
    instance: str | None
    primary: str | None
    #: Its disks that are volumes of an ExtStorage provider.
    disks: tuple[HookDisk, ...] = ()
    #: The disk template that it is to have from now on (GANETI_NEW_DISK_TEMPLATE), when that changes.
    new_template: str | None = None
    #: Where Ganeti keeps configuration and jobs (GANETI_DATA_DIR).
    data: Path = Path("/var/lib/ganeti")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the variables of the call; the process's own environment unless one is given."""
        variables = Variables(os.environ if environment is None else environment, "hook")
        variables.one_of("GANETI_HOOKS_VERSION", (VERSION,))
        path = variables.matching("GANETI_HOOKS_PATH", r"[a-z]+(-[a-z]+)*", "the name of a hook directory")
        phase = Phase(variables.one_of("GANETI_HOOKS_PHASE", tuple(Phase)))
        variables.action = f"hook {path}-{phase}"
        about_instance = path.startswith("instance-") or path == "disk-grow"
        return cls(
            path=path,
            phase=phase,
            op_code=variables.matching("GANETI_OP_CODE", r"OP_[A-Z0-9_]+", "the code of an operation"),
            target=variables.optional("GANETI_OP_TARGET"),
            cluster=variables.required("GANETI_CLUSTER"),
            master=variables.required("GANETI_MASTER"),
            instance=variables.matching("GANETI_INSTANCE_NAME", _NAME, "a host name") if about_instance else None,
            primary=variables.optional("GANETI_INSTANCE_PRIMARY"),
            disks=tuple(_disks(variables)) if about_instance else (),
            new_template=variables.optional("GANETI_NEW_DISK_TEMPLATE"),
            data=Path(variables.optional("GANETI_DATA_DIR") or cls.data),
        )


def _disks(variables: Variables) -> Iterator[HookDisk]:
    """The disks with a provider, as they were before the operation."""
    count = variables.optional("GANETI_INSTANCE_DISK_COUNT") or "0"
    for number in range(int(count) if count.isdigit() else 0):
        prefix = f"GANETI_INSTANCE_DISK{number}_"
        provider = variables.optional(f"{prefix}PROVIDER")
        if provider:
            uuid = variables.matching(f"{prefix}UUID", r"[0-9a-f-]{36}", "a UUID")
            yield HookDisk(uuid, provider, variables.matching(f"{prefix}ID", _NAME, "the name of a volume"))

# SPDX-License-Identifier: BSD-2-Clause
"""A call of an OS definition's script (create, import, export, rename, verify), API 20, as a record.

Sources: Ganeti 3.0.2 and 3.1 (lib/backend.py, OSCoreEnv and OSEnvironment; ganeti-os-interface(7)). Ganeti resets
the environment of create, rename and verify; import and export also inherit the node daemon's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Self

from ganeti_plugin.contract.variables import Variables
from ganeti_plugin.errors import InputError

API_VERSION = "20"

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
_MAC = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"

#: More than Ganeti allows (16 disks, 8 NICs), and few enough that a wrong count cannot keep us busy.
_COUNT_LIMIT = 64


class UnknownActionError(InputError):
    template = "{name!r} is not an action of an OS definition; there are {known}"


class Action(StrEnum):
    """What Ganeti asks for; the name that the program is called by."""

    CREATE = "create"
    IMPORT = "import"
    EXPORT = "export"
    RENAME = "rename"
    VERIFY = "verify"

    @classmethod
    def from_name(cls, name: str) -> Action:
        try:
            return cls(name)
        except ValueError:
            raise UnknownActionError(name=name, known=", ".join(cls)) from None


@dataclass(frozen=True, kw_only=True)
class OsDisk:
    """One disk of the instance. At least one of `path` and `uri` is set."""

    index: int
    #: Block device or file on this node: /dev/loop3 (DISK_n_PATH); absent for a disk that only QEMU can reach.
    path: str | None
    #: Hypervisor URI without the prefix "kvm:": nbd+unix:///?socket=/run/... (DISK_n_URI); with access=userspace only.
    uri: str | None
    #: "rw" or "ro" (DISK_n_ACCESS).
    mode: str
    #: Size in MiB (DISK_n_SIZE, since Ganeti 3.0).
    size: int | None
    #: UUID of the disk in Ganeti's configuration (DISK_n_UUID).
    uuid: str | None


@dataclass(frozen=True, kw_only=True)
class OsNic:
    """One NIC of the instance; what is unset in Ganeti is None."""

    index: int
    #: aa:00:00:12:34:56 (NIC_n_MAC).
    mac: str
    #: bridged, routed or openvswitch (NIC_n_MODE).
    mode: str | None
    #: Bridge, or routing table (NIC_n_LINK).
    link: str | None
    #: 198.51.100.10 (NIC_n_IP).
    ip: str | None
    #: The Ganeti network and its facts (NIC_n_NETWORK_NAME, ..._SUBNET, _GATEWAY, _SUBNET6, _GATEWAY6, _TAGS).
    network_name: str | None
    subnet: str | None
    gateway: str | None
    subnet6: str | None
    gateway6: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OsInstance:
    """The instance that the call is about."""

    #: web1.example.org (INSTANCE_NAME).
    name: str
    #: Its name before (OLD_INSTANCE_NAME); rename only.
    old_name: str | None
    #: kvm, xen-pvm, ... (HYPERVISOR).
    hypervisor: str
    #: Whether an existing instance gets a new system (INSTANCE_REINSTALL=1).
    reinstall: bool
    disks: tuple[OsDisk, ...]
    nics: tuple[OsNic, ...]


@dataclass(frozen=True, kw_only=True)
class OsTransfer:
    """The one disk that an import or export moves."""

    #: Number of the disk (IMPORT_INDEX, EXPORT_INDEX).
    index: int
    #: (IMPORT_DISK_PATH or _DEVICE, EXPORT_DISK_PATH or _DEVICE), (IMPORT_DISK_URI, EXPORT_DISK_URI).
    path: str | None
    uri: str | None
    #: Descriptor on which an export may announce its number of bytes (EXP_SIZE_FD).
    size_fd: int | None


@dataclass(frozen=True, kw_only=True)
class OsCall:
    """One call of one script."""

    action: Action
    #: Name of the OS without its variant, "snf-image" (OS_NAME).
    os_name: str
    #: "default"; empty when the OS has none (OS_VARIANT).
    variant: str
    #: OS parameters, public, private and secret merged (OSP_<NAME>), by lower-case name. May hold secrets.
    parameters: Mapping[str, str] = field(repr=False)
    #: Absent in verify.
    instance: OsInstance | None
    #: Present in import and export.
    transfer: OsTransfer | None

    @classmethod
    def from_environment(cls, action: Action, environment: Mapping[str, str] | None = None) -> Self:
        """Read the variables of the call; the process's own environment unless one is given.

        Raises MissingVariableError or MalformedVariableError, which name the variable.
        """
        given = os.environ if environment is None else environment
        variables = Variables(given, action)
        variables.one_of("OS_API_VERSION", (API_VERSION,))
        return cls(
            action=action,
            os_name=variables.matching("OS_NAME", _NAME, "the name of an OS definition"),
            variant=variables.optional("OS_VARIANT") or "",
            parameters=_parameters(given),
            instance=None if action is Action.VERIFY else _instance(variables, action),
            transfer=_transfer(variables, action) if action in (Action.IMPORT, Action.EXPORT) else None,
        )


def _parameters(environment: Mapping[str, str]) -> Mapping[str, str]:
    found = {name[4:].lower(): value for name, value in environment.items() if name.startswith("OSP_")}
    return MappingProxyType(found)


def _instance(variables: Variables, action: Action) -> OsInstance:
    renamed = action is Action.RENAME
    return OsInstance(
        name=variables.matching("INSTANCE_NAME", _NAME, "a host name"),
        old_name=variables.matching("OLD_INSTANCE_NAME", _NAME, "a host name") if renamed else None,
        hypervisor=variables.required("HYPERVISOR"),
        reinstall=variables.optional("INSTANCE_REINSTALL") == "1",
        disks=tuple(_disk(variables, index) for index in range(_count(variables, "DISK_COUNT"))),
        nics=tuple(_nic(variables, index) for index in range(_count(variables, "NIC_COUNT"))),
    )


def _count(variables: Variables, name: str) -> int:
    count = variables.integer(name)
    if count > _COUNT_LIMIT:
        raise variables.malformed(name, f"a number of at most {_COUNT_LIMIT}")
    return count


def _disk(variables: Variables, index: int) -> OsDisk:
    prefix = f"DISK_{index}_"
    path, uri = _place(variables, f"{prefix}PATH", f"{prefix}URI")
    return OsDisk(
        index=index,
        path=path,
        uri=uri,
        mode=variables.one_of(f"{prefix}ACCESS", ("rw", "ro")),
        size=variables.integer(f"{prefix}SIZE", minimum=1) if variables.optional(f"{prefix}SIZE") else None,
        uuid=variables.optional(f"{prefix}UUID"),
    )


def _place(variables: Variables, path_name: str, uri_name: str) -> tuple[str | None, str | None]:
    """Where a disk is: its path, its URI, or both."""
    path, uri = variables.optional(path_name), variables.optional(uri_name)
    if path is None and uri is None:
        variables.required(path_name)
    if path is not None and (not path.startswith("/") or not path.isprintable()):
        raise variables.malformed(path_name, "an absolute path")
    if uri is not None and (not re.match(r"[a-z][a-z0-9+.-]*:", uri) or not uri.isprintable()):
        raise variables.malformed(uri_name, "a URI")
    return path, uri


def _nic(variables: Variables, index: int) -> OsNic:
    prefix = f"NIC_{index}_"
    return OsNic(
        index=index,
        mac=variables.matching(f"{prefix}MAC", _MAC, "a MAC address").lower(),
        mode=variables.optional(f"{prefix}MODE"),
        link=variables.optional(f"{prefix}LINK"),
        ip=variables.optional(f"{prefix}IP"),
        network_name=variables.optional(f"{prefix}NETWORK_NAME"),
        subnet=variables.optional(f"{prefix}NETWORK_SUBNET"),
        gateway=variables.optional(f"{prefix}NETWORK_GATEWAY"),
        subnet6=variables.optional(f"{prefix}NETWORK_SUBNET6"),
        gateway6=variables.optional(f"{prefix}NETWORK_GATEWAY6"),
        tags=variables.words(f"{prefix}NETWORK_TAGS"),
    )


def _transfer(variables: Variables, action: Action) -> OsTransfer:
    word = action.upper()
    device = f"{word}_DEVICE" if variables.optional(f"{word}_DEVICE") else f"{word}_DISK_PATH"
    path, uri = _place(variables, device, f"{word}_DISK_URI")
    size_fd = variables.integer("EXP_SIZE_FD") if variables.optional("EXP_SIZE_FD") else None
    return OsTransfer(index=variables.integer(f"{word}_INDEX"), path=path, uri=uri, size_fd=size_fd)

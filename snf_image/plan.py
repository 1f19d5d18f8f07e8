# SPDX-License-Identifier: BSD-2-Clause
"""From Ganeti's call and the OS parameters to the helper's request. Pure but for the random numbers and the clock."""

from __future__ import annotations

import secrets
import time

from ganeti_plugin.contract.os import OsInstance, OsNic
from ganeti_plugin.errors import InputError
from ganeti_plugin.settings import Image
from snf_image import protocol
from snf_image.parameters import Parameters
from snf_image.protocol import DISK_SERIAL, Disk, Nic, Request

#: Bytes of entropy for the helper's random pool, and of the number that proves an answer to be one to this request.
_ENTROPY = 64
_NONCE = 16

#: Of an image, which is no machine.
_NEUTRAL_NAME = "localhost"


class RequestError(InputError):
    template = "the request to the helper is not possible: {reason}"


def request(instance: OsInstance, parameters: Parameters, settings: Image) -> Request:
    """What the helper is asked to do, checked against the protocol's limits before a VM is started."""
    made = Request(
        nonce=secrets.token_hex(_NONCE),
        entropy=secrets.token_hex(_ENTROPY),
        time=int(time.time()),
        hostname=instance.name,
        disks=tuple(Disk(index=disk.index, serial=f"{DISK_SERIAL}{disk.index}") for disk in instance.disks),
        nics=tuple(_nic(nic) for nic in instance.nics),
        image_format=parameters.image_format,
        users=parameters.users,
        password=parameters.password,
        password_hash=parameters.password_hash,
        auth_keys=parameters.auth_keys,
        personality=parameters.personality,
        properties=dict(parameters.properties),
        dhcp_tags=tuple(settings.dhcp_tags),
        stateful_dhcpv6_tags=tuple(settings.stateful_dhcpv6_tags),
        stateless_dhcpv6_tags=tuple(settings.stateless_dhcpv6_tags),
        default_nic_config=settings.default_nic_config,
    )
    try:
        protocol.encode(made)
    except protocol.ProtocolError as error:
        raise RequestError(reason=str(error)) from None
    return made


def generalize_request(root_partition: int | None, *, keep_logins: bool) -> Request:
    """What the helper is asked to do to the one disk of a machine that is to become an image."""
    properties = {} if root_partition is None else {"ROOT_PARTITION": str(root_partition)}
    if keep_logins:
        properties["EXCLUDE_TASK_FORGETLOGINS"] = "yes"
    return Request(
        nonce=secrets.token_hex(_NONCE),
        entropy=secrets.token_hex(_ENTROPY),
        time=int(time.time()),
        hostname=_NEUTRAL_NAME,
        disks=(Disk(index=0, serial=f"{DISK_SERIAL}0"),),
        operation=protocol.GENERALIZE,
        properties=properties,
    )


def _nic(nic: OsNic) -> Nic:
    return Nic(
        index=nic.index,
        mac=nic.mac,
        mode=nic.mode,
        ip=nic.ip,
        network_name=nic.network_name,
        subnet=nic.subnet,
        gateway=nic.gateway,
        subnet6=nic.subnet6,
        gateway6=nic.gateway6,
        tags=nic.tags,
    )

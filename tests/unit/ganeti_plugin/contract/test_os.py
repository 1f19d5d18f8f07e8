# SPDX-License-Identifier: BSD-2-Clause
"""The OS environment becomes a record; each variable that is missing or malformed is named."""

from __future__ import annotations

import pytest

from ganeti_plugin.contract.os import Action, OsCall, UnknownActionError
from ganeti_plugin.errors import MalformedVariableError, MissingVariableError

#: What Ganeti 3.0.2 sets for a create with one userspace disk and one routed NIC.
CREATE = {
    "PATH": "/sbin:/bin:/usr/sbin:/usr/bin",
    "OS_API_VERSION": "20",
    "OS_NAME": "snf-image",
    "OS_VARIANT": "default",
    "DEBUG_LEVEL": "0",
    "INSTANCE_NAME": "web1.example.org",
    "INSTANCE_OS": "snf-image+default",
    "HYPERVISOR": "kvm",
    "DISK_COUNT": "1",
    "DISK_0_ACCESS": "rw",
    "DISK_0_URI": "nbd+unix:///?socket=/run/snf-archipelago/v/nbd.sock,file.reconnect-delay=30",
    "DISK_0_SIZE": "20480",
    "DISK_0_UUID": "b5f0",
    "NIC_COUNT": "1",
    "NIC_0_MAC": "AA:00:00:12:34:56",
    "NIC_0_MODE": "routed",
    "NIC_0_LINK": "100",
    "NIC_0_IP": "198.51.100.10",
    "NIC_0_NETWORK_NAME": "public",
    "NIC_0_NETWORK_SUBNET": "198.51.100.0/24",
    "NIC_0_NETWORK_GATEWAY": "198.51.100.1",
    "NIC_0_NETWORK_TAGS": "public nfdhcpd",
    "OSP_IMG_ID": "null",
    "OSP_IMG_PASSWD": "",
}
RENAME = {**CREATE, "OLD_INSTANCE_NAME": "web0.example.org"}
IMPORT = {**CREATE, "IMPORT_INDEX": "0", "IMPORT_DISK_URI": "nbd:unix:/run/x"}
EXPORT = {**CREATE, "EXPORT_INDEX": "1", "EXPORT_DEVICE": "/dev/loop3", "EXP_SIZE_FD": "12"}
VERIFY = {name: value for name, value in CREATE.items() if name.startswith(("OS_", "OSP_"))}
CALLS = {
    Action.CREATE: CREATE,
    Action.RENAME: RENAME,
    Action.IMPORT: IMPORT,
    Action.EXPORT: EXPORT,
    Action.VERIFY: VERIFY,
}


def test_create_is_read_whole() -> None:
    call = OsCall.from_environment(Action.CREATE, CREATE)
    assert call.parameters == {"img_id": "null", "img_passwd": ""}
    assert call.instance is not None
    assert call.instance.name == "web1.example.org"
    disk, nic = call.instance.disks[0], call.instance.nics[0]
    assert (disk.path, disk.size, disk.mode) == (None, 20480, "rw")
    assert disk.uri == CREATE["DISK_0_URI"]
    assert (nic.mac, nic.ip, nic.tags, nic.gateway6) == (
        "aa:00:00:12:34:56",
        "198.51.100.10",
        ("public", "nfdhcpd"),
        None,
    )
    assert call.transfer is None


def test_verify_has_no_instance() -> None:
    call = OsCall.from_environment(Action.VERIFY, VERIFY)
    assert (call.instance, call.transfer) == (None, None)


def test_transfers() -> None:
    moved = OsCall.from_environment(Action.IMPORT, IMPORT).transfer
    assert moved is not None
    assert (moved.index, moved.path, moved.uri, moved.size_fd) == (0, None, "nbd:unix:/run/x", None)
    moved = OsCall.from_environment(Action.EXPORT, EXPORT).transfer
    assert moved is not None
    assert (moved.index, moved.path, moved.uri, moved.size_fd) == (1, "/dev/loop3", None, 12)


REQUIRED = [
    (action, name)
    for action, names in {
        Action.VERIFY: ["OS_API_VERSION", "OS_NAME"],
        Action.CREATE: [
            "OS_NAME",
            "INSTANCE_NAME",
            "HYPERVISOR",
            "DISK_COUNT",
            "DISK_0_ACCESS",
            "NIC_COUNT",
            "NIC_0_MAC",
        ],
        Action.RENAME: ["OLD_INSTANCE_NAME"],
        Action.IMPORT: ["IMPORT_INDEX"],
        Action.EXPORT: ["EXPORT_INDEX"],
    }.items()
    for name in names
]


@pytest.mark.parametrize(("action", "name"), REQUIRED)
def test_missing_variable_is_named(action: Action, name: str) -> None:
    environment = {key: value for key, value in CALLS[action].items() if key != name}
    with pytest.raises(MissingVariableError, match=f"^{action}: .* {name} is missing"):
        OsCall.from_environment(action, environment)


def test_a_disk_without_any_place() -> None:
    environment = {key: value for key, value in CREATE.items() if key != "DISK_0_URI"}
    with pytest.raises(MissingVariableError, match="DISK_0_PATH"):
        OsCall.from_environment(Action.CREATE, environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OS_API_VERSION", "15"),
        ("INSTANCE_NAME", "a b"),
        ("INSTANCE_NAME", "../x"),
        ("INSTANCE_NAME", "-x"),
        ("DISK_COUNT", "-1"),
        ("DISK_COUNT", "1000000"),
        ("DISK_0_ACCESS", "rx"),
        ("DISK_0_SIZE", "20G"),
        ("DISK_0_PATH", "relative"),
        ("DISK_0_PATH", "/dev/x\ny"),
        ("DISK_0_URI", "no uri"),
        ("NIC_0_MAC", "aa:00"),
        ("NIC_COUNT", "٣"),
    ],
)
def test_malformed_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(MalformedVariableError, match=name):
        OsCall.from_environment(Action.CREATE, {**CREATE, name: value})


def test_secrets_are_not_in_the_representation() -> None:
    call = OsCall.from_environment(Action.CREATE, {**CREATE, "OSP_IMG_PASSWD": "geheim"})
    assert "geheim" not in repr(call)


def test_unknown_action() -> None:
    with pytest.raises(UnknownActionError, match="create, import, export, rename, verify"):
        Action.from_name("destroy")

# SPDX-License-Identifier: BSD-2-Clause
"""ForgetIdentity: machine id, random seeds and host name of the machine that a golden image was made of.

An empty /etc/machine-id is what systemd wants in an image: machine-id(5).
"""

from __future__ import annotations

from snf_image.helper.task import Context, Task
from snf_image.helper.tasks.assign_hostname import OWN_ADDRESS
from snf_image.helper.tree import Tree

MACHINE_ID = "etc/machine-id"
HOSTNAME = "localhost"

#: Made anew at the next boot.
REMOVED = (
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/urandom/random-seed",
    "var/lib/random-seed",
    "var/lib/misc/random-seed",
    "boot/loader/random-seed",
    "boot/efi/loader/random-seed",
    "efi/loader/random-seed",
)
EMPTIED = ("var/lib/seedrng",)


def without_own_address(hosts: str) -> str:
    """The hosts file without the name of the machine."""
    return "".join(line for line in hosts.splitlines(keepends=True) if line.split()[:1] != [OWN_ADDRESS])


def forget_name(tree: Tree) -> None:
    if tree.exists("etc/hostname"):
        tree.write_text("etc/hostname", HOSTNAME + "\n")
    hosts = tree.read_text("etc/hosts")
    if hosts is not None and without_own_address(hosts) != hosts:
        tree.write_text("etc/hosts", without_own_address(hosts))


def run(context: Context) -> None:
    tree = context.tree
    if tree.exists(MACHINE_ID):
        tree.write(MACHINE_ID, b"", mode=0o444)
    removed = sum(tree.remove(path) for path in REMOVED) + sum(tree.empty(path) for path in EMPTIED)
    context.facts["identities_removed"] = str(removed)
    forget_name(tree)


TASK = Task(name="ForgetIdentity", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

# SPDX-License-Identifier: BSD-2-Clause
"""DeleteSSHKeys: the author's host keys go, and the system gets its own.

The new keys are made by the helper's ssh-keygen, not by a program of the image. RSA takes seconds without hardware
virtualization, so it is made only where an image asks for nothing else.
"""

from __future__ import annotations

import os

from snf_image.helper import programs, ssh_config
from snf_image.helper.errors import TaskError
from snf_image.helper.task import Context, Task

FOLDER = "etc/ssh"
PREFIX = "ssh_host_"
WORK = "/run/keys"
KINDS = ("ed25519", "ecdsa")


def old_keys(names: list[str], settings: ssh_config.Settings) -> list[str]:
    """Every file that holds a host key, public halves and certificates too."""
    found = [f"{FOLDER}/{name}" for name in names if name.startswith(PREFIX)]
    for path in ssh_config.host_key_paths(settings):
        plain = path.strip("/")
        if path.startswith("/") and ".." not in plain.split("/"):
            found += [plain, plain + ".pub"]
    return sorted(set(found))


def kinds_for(settings: ssh_config.Settings) -> tuple[str, ...]:
    """The kinds to make: the modern two, or what the image's sshd insists on."""
    named = [path.rpartition("/")[2] for path in ssh_config.host_key_paths(settings)]
    if not named:
        return KINDS
    wanted = [kind for kind in (*KINDS, "rsa") if f"{PREFIX}{kind}_key" in named]
    return tuple(kind for kind in wanted if kind != "rsa") or tuple(wanted) or KINDS


def make(kind: str, comment: str) -> tuple[bytes, bytes]:
    """A fresh key's private and public file."""
    path = f"{WORK}/{kind}"
    options = ["-q", "-t", kind, "-N", "", "-C", comment, "-f", path]
    programs.run(["/usr/bin/ssh-keygen", *options], timeout=300.0)
    halves = []
    for name in (path, path + ".pub"):
        with open(name, "rb") as stream:
            halves.append(stream.read())
        os.unlink(name)
    return halves[0], halves[1]


def run(context: Context) -> None:
    tree = context.tree
    settings = ssh_config.read(tree)
    removed = [path for path in old_keys(tree.names(FOLDER), settings) if tree.remove(path)]
    context.facts["host_keys_removed"] = str(len(removed))
    if not tree.exists(ssh_config.MAIN):
        return
    os.makedirs(WORK, mode=0o700, exist_ok=True)
    for kind in kinds_for(settings):
        private, public = make(kind, f"root@{context.request.hostname}")
        tree.write(f"{FOLDER}/{PREFIX}{kind}_key", private, mode=0o600, uid=0, gid=0)
        tree.write(f"{FOLDER}/{PREFIX}{kind}_key.pub", public, mode=0o644, uid=0, gid=0)
        fields = public.split()
        if len(fields) < 2:
            raise TaskError("ssh-keygen made a public key that cannot be read")
        context.facts[f"host_key_{kind}"] = b" ".join(fields[:2]).decode("ascii", "replace")


TASK = Task(name="DeleteSSHKeys", run=run, after=("MountImage",), before=("UmountImage",), needs_mount=True)

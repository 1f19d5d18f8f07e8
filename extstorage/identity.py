# SPDX-License-Identifier: BSD-2-Clause
"""Ganeti runs us as root; what touches the store runs as the store's user, and so do the servers."""

from __future__ import annotations

import contextlib
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

from extstorage.names import token
from extstorage.store import Holder
from ganeti_plugin.errors import StateError


class NoUserError(StateError):
    template = "the system user {name!r} does not exist"
    hint = "the package snf-archipelago makes it; the setting archipelago.user names it"


def ids_of(user: str) -> tuple[int, int]:
    """User and group id of the store's user; our own when we are not root and can't become anybody."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise NoUserError(name=user) from None
    return entry.pw_uid, entry.pw_gid


@contextlib.contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Be the store's user for a while. The process must have one thread."""
    if os.geteuid() != 0:
        yield
        return
    uid, gid = ids_of(user)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def boot_id() -> str:
    """Differs after each start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def myself() -> Holder:
    """Who takes a lock now: this process, with a token of its own."""
    return Holder(token(), os.uname().nodename, boot_id(), os.getpid(), time.time())

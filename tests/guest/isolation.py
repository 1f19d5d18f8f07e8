# SPDX-License-Identifier: BSD-2-Clause
"""Work that cannot leave anything behind: a child in its own mount and PID namespaces.

The child works in a tmpfs that only it sees. Whatever ends it or its parent (also SIGKILL) takes the processes, the
mounts, the loop devices (autoclear) and every intermediate file with it. The kernel does the cleaning; there is no
list of things to undo.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from ganeti_plugin import log
from ganeti_plugin.errors import Error, StateError
from ganeti_plugin.run import run

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class WorkError(StateError):
    """The child has already said why, in its own words."""

    template = "{what} failed"


def _unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise StateError(message=f"no private namespaces: {os.strerror(number)}", hint="run this as root, not confined")


def isolated(what: str, work: Callable[[Path], None], *, scratch: Path, size: str) -> None:
    """Run `work(scratch)` in a child; `scratch` is then an empty tmpfs of at most `size` (tmpfs(5) syntax)."""
    _unshare(CLONE_NEWPID)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os._exit(_child(work, scratch, size, parent))
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if status != 0:
        raise WorkError(what=what)


def _child(work: Callable[[Path], None], scratch: Path, size: str, parent: int) -> int:
    """The first process of the PID namespace: when it ends, all the others in there do."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        # The mount namespace is the child's alone: the caller's must stay as it is.
        _unshare(CLONE_NEWNS)
        run(["mount", "--make-rprivate", "/"])
        run(["mount", "-t", "proc", "proc", "/proc"])
        run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "snf-guest-build", scratch])
        work(scratch)
    except Error as error:
        log.error("%s", error)
        return 1
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        return 1
    return 0

# SPDX-License-Identifier: BSD-2-Clause
"""Keeps the threads of an NBD connection known to Python between requests.

nbdkit's threads are not Python's own. Around each call it brackets PyGILState_Ensure and PyGILState_Release, and the
last release deletes what the interpreter keeps of a thread: each request would map and unmap the thread's stack for
Python frames (16 KiB), and have the other processors forget the mapping. Of a read of 4 KiB that was a third. So each
thread enters once more than it leaves, and what is kept is deleted when its connection has ended.

Source: "Thread State and the Global Interpreter Lock" in Python's C API manual; Python/pystate.c of 3.11 and 3.13.
"""

from __future__ import annotations

import ctypes
import threading

_api = ctypes.pythonapi
_api.PyThreadState_Get.restype = ctypes.c_void_p
for _function in (_api.PyThreadState_Clear, _api.PyThreadState_Delete):
    _function.argtypes = [ctypes.c_void_p]
    _function.restype = None


class ThreadStates:
    """Those of one connection."""

    def __init__(self) -> None:
        self._known = threading.local()
        self._states: list[int] = []

    def keep(self) -> None:
        """That of the calling thread, until `forget`; cheap from the second time on."""
        try:
            self._known.yes  # noqa: B018 - asking is all
        except AttributeError:
            _api.PyGILState_Ensure()
            self._known.yes = True
            self._states.append(_api.PyThreadState_Get())

    def forget(self) -> None:
        """When the threads have ended."""
        own = _api.PyThreadState_Get()
        states = [state for state in self._states if state != own]
        self._states.clear()
        if states:
            # From 3.12 on, deleting the state of another thread makes the deleting one unknown, too: so not this one.
            deleter = threading.Thread(target=_delete, args=(states,))
            deleter.start()
            deleter.join()


def _delete(states: list[int]) -> None:
    for state in states:
        _api.PyThreadState_Clear(state)
        _api.PyThreadState_Delete(state)

# SPDX-License-Identifier: BSD-2-Clause
"""What nbdkit logs of a request that failed: of our own errors their sentence, once for each request.

nbdkit's Python plugin asks `traceback.format_exception` (plugins/python/errors.c, 1.32). A guest whose server was taken
over fails at every write, and where in our code that is noticed fills the journal and tells an administrator nothing.
"""

from __future__ import annotations

import traceback
from typing import Any

from ganeti_plugin.errors import Error


def install() -> None:
    """For the whole process."""
    real = traceback.format_exception

    def format_exception(kind: Any, error: Any = None, *more: Any, **options: Any) -> list[str]:
        return [str(error)] if isinstance(error, Error) else real(kind, error, *more, **options)

    traceback.format_exception = format_exception  # type: ignore[assignment]

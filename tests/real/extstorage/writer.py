# SPDX-License-Identifier: BSD-2-Clause
"""A process that has a volume of a RADOS store open and writes to it, so that tests can stop and kill it.

    python3 -m tests.real.extstorage.writer SPEC VOLUME here|elsewhere

Fills page after page, says the number of each that was acknowledged, and at the end how it ended.
"""

from __future__ import annotations

import sys
import time

from extstorage import specs
from extstorage.names import PAGE
from extstorage.rados_locks import Identity
from extstorage.rados_store import open_store
from extstorage.session import Session
from extstorage.specs import RadosSpec
from ganeti_plugin.errors import Error


def main() -> None:
    spec = specs.parse(sys.argv[1])
    assert isinstance(spec, RadosSpec)
    identity = Identity.own()
    if sys.argv[3] == "elsewhere":
        identity = identity._replace(node="elsewhere", boot="of another machine")
    session = Session(open_store(spec, identity=identity), sys.argv[2])
    try:
        session.open(True)
        print("open", flush=True)
        for number in range(100_000):
            session.write(memoryview(bytes([1 + number % 255]) * PAGE), number % 512 * PAGE)
            print(number, flush=True)
            time.sleep(0.005)
    except Error as error:
        print(type(error).__name__, error, flush=True)


if __name__ == "__main__":
    main()

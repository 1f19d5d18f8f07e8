# SPDX-License-Identifier: BSD-2-Clause
"""fio on a block device while servers die. On its own, for the machine of kernel_machine.py has it, too."""

from __future__ import annotations

import json
import signal
import subprocess
import threading


class Load(threading.Thread):
    """fio writes and reads with verification until it is told to end, whatever happens to the server."""

    def __init__(self, device: str, *, rate: int = 60) -> None:
        super().__init__()
        words = {"name": "load", "filename": device, "ioengine": "libaio", "direct": "1", "iodepth": "8", "bs": "16k"}
        words |= {"rw": "randwrite", "size": "8m", "verify": "crc32c", "verify_fatal": "1", "randseed": "7"}
        words |= {"verify_backlog": "32", "rate_iops": str(rate), "time_based": "1", "runtime": "600"}
        self.command = ["fio", "--output-format=json", *(f"--{key}={value}" for key, value in words.items())]
        self.status = -1
        self.said = ""
        self.start()

    def run(self) -> None:
        with subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as self.fio:
            self.said = self.fio.communicate(timeout=300)[0]
        self.status = self.fio.returncode

    def worst(self) -> float:
        """End it, after what it has begun; the seconds that the slowest request took."""
        self.fio.send_signal(signal.SIGINT)
        self.join()
        assert self.status in (0, 128), self.said[-2000:]
        jobs = json.loads(self.said[self.said.index("{") : self.said.rindex("}") + 1])["jobs"]
        assert all(job["error"] == 0 for job in jobs)
        assert all(job[kind]["total_ios"] > 0 for job in jobs for kind in ("read", "write"))
        return float(max(job[kind]["clat_ns"]["max"] for job in jobs for kind in ("read", "write"))) / 1e9

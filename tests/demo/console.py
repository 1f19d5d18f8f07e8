#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Log in on a guest's serial console and run one command; prints its output.

    console.py SOCKET SECONDS COMMAND     (the root password is read from stdin)

A guest behind the profile `protected` takes no connection, so this is how the demonstration asks it about itself;
logging in also proves that the password was set. Runs in the node, needs nothing but Python.
"""

from __future__ import annotations

import re
import socket
import sys
import time

PROMPT = r"root@[^\n]*# $"
LOGIN = r"login: $"


class Console:
    """The serial line; `seen` is what was received and not yet consumed."""

    def __init__(self, path: str, seconds: float) -> None:
        self.line = socket.socket(socket.AF_UNIX)
        self.line.connect(path)
        self.deadline = time.monotonic() + seconds
        self.seen = ""

    def send(self, text: str) -> None:
        self.line.sendall(text.encode() + b"\n")

    def read_until(self, *patterns: str, patience: float = 3600) -> tuple[int, str]:
        """Index of the first pattern seen and the text before it; (-1, "") after `patience` seconds."""
        until = min(self.deadline, time.monotonic() + patience)
        while True:
            for index, pattern in enumerate(patterns):
                if found := re.search(pattern, self.seen):
                    before, self.seen = self.seen[: found.start()], self.seen[found.end() :]
                    return index, before
            if not self._receive(until):
                return -1, ""

    def _receive(self, until: float) -> bool:
        left = until - time.monotonic()
        if left <= 0:
            if time.monotonic() >= self.deadline:
                sys.exit(f"console: no answer in time; last seen: {self.seen[-200:]!r}")
            return False
        self.line.settimeout(left)
        try:
            self.seen += self.line.recv(4096).decode("utf-8", "replace").replace("\r", "")
        except TimeoutError:
            return True
        return True

    def login(self, password: str) -> None:
        while True:
            self.send("")
            where, _ = self.read_until(LOGIN, PROMPT, patience=5)
            if where == 1:
                return
            if where == 0 and self._enter(password):
                return

    def _enter(self, password: str) -> bool:
        self.send("root")
        if self.read_until(r"Password: ", patience=20)[0] < 0:
            return False
        self.send(password)
        answer, _ = self.read_until(PROMPT, r"Login incorrect", patience=60)
        if answer == 1:
            sys.exit("console: the guest refused the password")
        return answer == 0


def main() -> None:
    path, seconds, command = sys.argv[1:]
    console = Console(path, float(seconds))
    console.login(sys.stdin.readline().strip())
    # The marks are split by quotes in what is typed, so that the echo of the line is not taken for its output.
    console.send(f"stty cols 500; echo 'snf'-begin; {command}; echo 'snf'-end")
    console.read_until(r"snf-begin\n")
    print(console.read_until(r"snf-end\n")[1].strip())


main()

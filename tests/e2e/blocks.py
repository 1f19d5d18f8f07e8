# SPDX-License-Identifier: BSD-2-Clause
"""Witnesses of what a guest writes: numbered blocks, each durable before its number is said.

    blocks.py collect ADDRESS "DISK FIRST SIZE SLOTS NUMBER"    outside: start the guest's writer, print its numbers
    blocks.py check SOCKET FIRST SIZE SLOTS DOUBT < numbers     in a node: compare a volume with what was said

The writer (WRITER below, a file in the guest) puts number n into slot n % SLOTS of SIZE bytes, from the byte FIRST on.
So a slot must hold the last number that was said of it. When the guest has died, or goes on writing, the next DOUBT
numbers may have been written too, and were not heard; one of them only in part.
"""

from __future__ import annotations

import socket
import sys

SHELL_PORT = 2323
WRITER_PORT = 2324

STOP = "/run/stop-writing"

WRITER = r"""#!/bin/sh
read -r disk first size slots number
while [ ! -e /run/stop-writing ]; do
  number=$((number + 1))
  yes "$(printf %015d $number)" | head -c "$size" |
    dd of="$disk" bs="$size" seek=$((first / size + number % slots)) conv=notrunc,fsync iflag=fullblock 2>/dev/null ||
    { echo "failed at $number"; exit 1; }
  echo $number
done
echo stopped
"""


def collect(address: str, order: str) -> None:
    """Say every number as it comes; ends with the writer, or with us."""
    with socket.create_connection((address, WRITER_PORT), 60) as line:
        line.settimeout(None)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        line.sendall(f"{order}\n".encode())
        while received := line.recv(4096):
            sys.stdout.buffer.write(received)
            sys.stdout.buffer.flush()


def numbers(text: str) -> list[int]:
    """What was said for certain: a last line without its end counts for nothing."""
    return [int(line) for line in text.split("\n")[:-1] if line.isdigit()]


def check(path: str, first: int, size: int, slots: int, doubt: int) -> None:
    """Print what is wrong, a line each, and how many slots were looked at."""
    import nbd

    said = numbers(sys.stdin.read())
    expected = {number % slots: number for number in said}
    last = max(said, default=0)
    client = nbd.NBD()
    client.connect_unix(path)
    torn = 0
    for slot, number in sorted(expected.items()):
        data = bytes(client.pread(size, first + slot * size))
        # A number has 15 digits and an end.
        text = data[:15].decode("ascii", "replace")
        doubtful = (slot - last - 1) % slots < doubt
        if data != data[:16] * (size // 16):
            torn += 1
            if not doubtful or torn > 1:
                print(f"slot {slot}: torn, begins with {text!r}, expected {number}")
        elif text != f"{number:015}" and not (doubtful and text.isdigit() and number < int(text) <= last + doubt):
            print(f"slot {slot}: holds {text!r}, expected {number}; the last was {last}")
    print(f"checked {len(expected)} slots up to number {last}")


def main() -> None:
    command, *words = sys.argv[1:]
    if command == "collect":
        collect(*words)
    else:
        path, *sizes = words
        check(path, *map(int, sizes))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: BSD-2-Clause
"""What end-to-end tests share: names, and what an action leaves behind in a node."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, fields

from tests.place import done

NODES = ("node1", "node2")

#: The image that tests clone, and its file as a node sees it.
IMAGE = "small"
IMAGE_FILE = "/srv/cache/guest/small.raw"

NETWORK = (
    *("gnt-network", "add", "--network=198.51.100.0/24", "--gateway=198.51.100.1"),
    *("--network6=2001:db8:1::/64", "--gateway6=2001:db8:1::1", "public"),
)


#: Runs in the node: everything that an action of ours could leave there, as JSON.
LOOK = """
import glob, json, os, subprocess
def lines(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
def processes():
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            words = open(path).read().split("\\0")
        except OSError:
            continue
        name = os.path.basename(words[0])
        if name.startswith(("nbdkit", "nbdfuse", "qemu", "virtiofsd")):
            yield " ".join(words)[:300]
store = []
for top in ("/var/lib/snf-archipelago", "/srv/shared"):
  for folder, folders, names in os.walk(top):
    store += [os.path.join(folder, name) for name in folders + names]
print(json.dumps({
    "instances": lines("gnt-instance", "list", "--no-headers", "-o", "name"),
    "volumes": [line.split()[0] for line in lines("archipelago", "volume", "list")],
    "store": store,
    "runtime": glob.glob("/run/snf-archipelago/*") + [
        path for path in glob.glob("/run/snf-image/*")
        # The places of helper VMs, as many as may run at once, and the folder that is their root.
        if not os.path.basename(path).startswith("place-") and os.path.basename(path) != "root"],
    "processes": list(processes()),
    "units": [line.split()[0] for line in
              lines("systemctl", "list-units", "--all", "--plain", "--no-legend", "snf-*@*", "snf-image-*")],
    "interfaces": [n for n in os.listdir("/sys/class/net") if n.startswith(("tap", "gnt", "veth"))],
    "rules": lines("ip", "rule") + lines("ip", "-6", "rule"),
    "mounts": [line.split()[1] for line in open("/proc/self/mounts") if "fuse" in line.split()[2]],
    "temporary": [n for n in os.listdir("/tmp") + os.listdir("/var/tmp") if "snf" in n and "systemd" not in n],
}))
"""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What there is in a node, by kind."""

    instances: frozenset[str]
    volumes: frozenset[str]
    store: frozenset[str]
    runtime: frozenset[str]
    processes: frozenset[str]
    units: frozenset[str]
    interfaces: frozenset[str]
    rules: frozenset[str]
    mounts: frozenset[str]
    temporary: frozenset[str]

    @classmethod
    def look(cls, node: str = "node1") -> Traces:
        found = json.loads(done("/usr/bin/python3", "-c", LOOK, place=node))
        return cls(**{name: frozenset(found[name]) for name in found})

    def more_than(self, before: Traces) -> dict[str, list[str]]:
        """What is here and was not there before: what was left behind."""
        kinds = (field.name for field in fields(self))
        left = {kind: sorted(getattr(self, kind) - getattr(before, kind)) for kind in kinds}
        return {kind: names for kind, names in left.items() if names}


def assert_nothing_left(before: Traces, *, seconds: float = 10) -> None:
    """Compare with `before`; what systemd is still taking down gets a few seconds."""
    deadline = time.monotonic() + seconds
    while left := Traces.look().more_than(before):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(1)


def sentence_about(text: str, pattern: str) -> str:
    """The one line that matches `pattern`; fails when there is none, or a traceback beside it."""
    assert "Traceback" not in text, text
    found = [line for line in text.splitlines() if re.search(pattern, line)]
    assert found, f"nothing like {pattern!r} in: {text}"
    return found[0]

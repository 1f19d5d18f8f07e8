# SPDX-License-Identifier: BSD-2-Clause
"""Runs in the machine of kernel_machine.py, where the kernel has an NBD client: real devices, real units, real deaths.

The functions check_* run in the order in which they stand here and leave the volumes to the next. Each prints one line,
"ok NAME" or "failed NAME", which test_kernel_nbd.py collects. Programs start slowly in an emulated machine, so what
is not about the scripts themselves is called in this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "/usr/share/snf-ganeti")

from extstorage import apply, nbd_device, servers
from extstorage.devices import start_device, stop_device
from extstorage.errors import NoDeviceError
from extstorage.plan import AttachPlan, CreatePlan, Device, GrowPlan, SnapshotPlan
from tests.real.extstorage.fio import Load

SCRIPTS = Path("/usr/share/ganeti/extstorage/archipelago")
RUN = Path("/run/snf-archipelago")
DEVICES = Path("/run/snf-archipelago-device")
MIB = 1 << 20
SIZE = 64 * MIB
SITE = apply.site()

#: Some files.
TREE = "/usr/share/snf-ganeti/hooks"

#: Where the node's Ceph listens, on its loopback interface; the node as the machine sees it.
PORTS = Path("/root/ports")
NODE, OWN = "10.0.2.2", "10.0.2.15/24"

#: Two by NBD, one by loop; and one by NBD in Ceph.
ONE, TWO, LOOPED, IN_RADOS = (f"{uuid.uuid4()}.ext.disk{index}" for index in range(4))
found: dict[str, str] = {}


def sh(*words: str, timeout: float = 120) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout} {done.stderr}"
    return done.stdout.strip()


def attach_script(volume: str, **variables: str) -> subprocess.Popen[str]:
    """The script, as Ganeti calls it."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "VOL_NAME": volume, "VOL_UUID": str(uuid.uuid4())}
    environment |= {"EXTP_PROVIDER": "archipelago", "EXTP_ACCESS": "kernelspace"} | variables
    return subprocess.Popen([SCRIPTS / "attach"], env=environment, stdout=subprocess.PIPE, text=True)


def attach(volume: str, device: Device = Device.AUTO) -> str:
    return apply.attach(SITE, AttachPlan(volume, device, uri=False))


def refusal_of_detach(volume: str) -> str:
    try:
        apply.detach(SITE, volume)
    except NoDeviceError as error:
        return str(error)
    return ""


def number_of(device: str) -> int:
    return int(device.removeprefix("/dev/nbd"))


def backend(device: str) -> str:
    path = Path("/sys/block") / device.removeprefix("/dev/") / "backend"
    return path.read_text().strip() if path.exists() else ""


def size_of(device: str) -> int:
    return int(sh("blockdev", "--getsize64", device))


def first_bytes(device: str) -> bytes:
    with open(device, "rb") as stream:
        return stream.read(MIB)


def queue(device: str, name: str) -> str:
    return (Path("/sys/block") / device.removeprefix("/dev/") / "queue" / name).read_text().strip()


def process_of(unit: str) -> int:
    return int(sh("systemctl", "show", "-P", "MainPID", unit))


def server_of(name: str) -> str:
    return f"snf-archipelago@{name}.service"


def watcher_of(name: str) -> str:
    return f"snf-archipelago-nbd@{name}.service"


def wait(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.2)


def kill(unit: str) -> Callable[[], None]:
    """kill -9; what is returned waits for the successor, which systemd starts."""
    process = process_of(unit)
    assert process
    os.kill(process, signal.SIGKILL)
    return lambda: wait(lambda: process_of(unit) not in (0, process), f"new process of {unit}")


def check_many_attaches_at_once() -> str:
    for name in (ONE, TWO, LOOPED):
        apply.create(SITE, CreatePlan(name, SIZE, "", "", adopt=False))
    began = {name: attach_script(name) for name in (ONE, TWO)}
    began[LOOPED] = attach_script(LOOPED, EXTP_DEVICE="loop")
    found.update({name: process.communicate(timeout=150)[0] for name, process in began.items()})
    assert all(process.returncode == 0 for process in began.values())
    assert len(set(found.values())) == len(found), found
    for name in (ONE, TWO):
        assert number_of(found[name]) > 0
        assert os.minor(os.stat(found[name]).st_rdev) > 0
        assert backend(found[name]) == f"{RUN}/{name}/nbd.sock"
    assert found[LOOPED].startswith("/dev/loop")
    assert found[LOOPED] != "/dev/loop0"
    for name in found:
        apply.open_volume(SITE, name, True)
    return " ".join(found.values())


def check_what_the_kernel_was_told() -> str:
    device = found[ONE]
    assert attach(ONE) == device
    assert size_of(device) == size_of(found[LOOPED]) == SIZE
    assert queue(device, "logical_block_size") == "512"
    assert queue(device, "write_cache") == "write back"
    assert queue(device, "fua") == "1"
    assert int(queue(device, "discard_max_bytes")) > 0
    assert Path("/sys/module/nbd/parameters/max_part").read_text().strip() == "0"
    memory = Path(f"/proc/{process_of(watcher_of(ONE))}/smaps_rollup").read_text().splitlines()[1:]
    used = {line.split(":")[0]: int(line.split()[1]) for line in memory}
    zeros = queue(device, "write_zeroes_max_bytes")
    return f"zeros at once: {zeros}; watcher: {used['Rss']} KiB, of its own {used['Private_Dirty']} KiB"


def check_the_death_of_servers_is_not_noticed() -> str:
    """By fio, with both kinds of device: deaths, an upgrade, the death of server and watcher at once."""
    loads = [Load(found[name]) for name in (ONE, LOOPED)]
    time.sleep(3)
    for again in [kill(server_of(name)) for name in (ONE, LOOPED)]:
        again()
    time.sleep(3)
    sh("systemctl", "restart", server_of(ONE), server_of(LOOPED))
    watcher = kill(watcher_of(ONE))
    kill(server_of(ONE))()
    watcher()
    old = process_of(watcher_of(ONE))
    assert servers.wait_for(lambda: servers.is_running(SITE, ONE), 60)
    sh("archipelago", "server", "restart", ONE)
    assert process_of(watcher_of(ONE)) not in (0, old)
    assert attach(ONE) == found[ONE]
    assert all(load.is_alive() for load in loads), "the load was over too soon to say anything"
    return "slowest request by NBD {:.1f} s, by loop {:.1f} s".format(*(load.worst() for load in loads))


def check_a_grown_volume() -> str:
    data = os.urandom(MIB)
    Path("/run/data").write_bytes(data)
    for name in (ONE, LOOPED):
        device = found[name]
        apply.grow(SITE, GrowPlan(name, SIZE + 32 * MIB))
        assert size_of(device) == SIZE + 32 * MIB
        sh("dd", "if=/run/data", f"of={device}", "bs=1M", "seek=95", "oflag=direct")
        sh("dd", f"if={device}", "of=/run/again", "bs=1M", "skip=95", "iflag=direct")
        assert Path("/run/again").read_bytes() == data
    return ""


def check_discards_and_zeros() -> str:
    """On pages and across them, by both kinds of device."""
    Path("/run/data").write_bytes(os.urandom(4 * MIB))
    for device in (found[TWO], found[LOOPED]):
        expected = bytearray(Path("/run/data").read_bytes())
        sh("dd", "if=/run/data", f"of={device}", "bs=1M", "oflag=direct")
        for offset, length in ((4096, 8192), (MIB + 512, 1536), (2 * MIB + 3584, 4096 + 1024)):
            sh("blkdiscard", "-z", "-o", str(offset), "-l", str(length), device)
            expected[offset : offset + length] = bytes(length)
        if device != found[LOOPED]:  # which passes no discards on
            sh("blkdiscard", "-o", str(3 * MIB), "-l", str(MIB), device)
            expected[3 * MIB :] = bytes(MIB)
        sh("dd", f"if={device}", "of=/run/again", "bs=1M", "count=4", "iflag=direct")
        assert Path("/run/again").read_bytes() == expected, device
    return ""


def check_a_device_in_use_is_not_cut_off() -> str:
    device = found[TWO]
    sh("mkfs.ext4", "-q", device)
    Path("/mnt/x").mkdir(parents=True, exist_ok=True)
    sh("mount", device, "/mnt/x")
    sh("cp", "-r", TREE, "/mnt/x/tree")
    kill(server_of(TWO))
    vars(nbd_device)["IN_USE_TIMEOUT"] = 2.0
    assert "still in use" in refusal_of_detach(TWO)
    Path("/mnt/x/more").write_bytes(bytes(MIB))
    sh("sync", "-f", "/mnt/x")
    sh("umount", "/mnt/x")
    assert backend(device) == f"{RUN}/{TWO}/nbd.sock"
    sh("fsck.ext4", "-fn", device)
    apply.detach(SITE, TWO)
    assert backend(device) == ""
    return ""


def check_a_number_that_is_another_volume_s() -> str:
    """Its number goes on to the next, and a record of the past does not make it another's (threats L14)."""
    device = found[TWO]
    snapshot = f"{ONE}.snap"
    apply.snapshot(SITE, SnapshotPlan(ONE, snapshot, replace=True))
    again = attach(snapshot)
    assert number_of(again) == number_of(device), "the lowest free number is taken"
    assert sh("blockdev", "--getro", again) == "1"
    assert first_bytes(again) == first_bytes(found[ONE])
    (DEVICES / ONE / "nbd").write_text(f"{number_of(again)}\n")
    assert start_device(SITE, ONE, Device.AUTO) == found[ONE]
    stop_device(SITE, TWO)  # which has none any more
    assert backend(again) == f"{RUN}/{snapshot}/nbd.sock"
    other = attach(TWO)
    assert number_of(other) not in (0, number_of(again), number_of(found[ONE]))
    sh("mount", "-o", "ro", other, "/mnt/x")
    sh("diff", "-r", TREE, "/mnt/x/tree")
    sh("umount", "/mnt/x")
    apply.remove(SITE, snapshot)
    assert backend(again) == ""
    return again


def reach_ceph() -> None:
    """At its own addresses, for a client refuses an OSD that is not where the cluster's map says."""
    sh("ip", "link", "set", "eth0", "up")
    sh("ip", "address", "add", OWN, "dev", "eth0")
    for port in PORTS.read_text().split():
        listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"
        sh("systemd-run", "--quiet", "socat", listen, f"TCP:{NODE}:{port}")


def check_a_volume_in_rados() -> str:
    """The server that speaks to a cluster is killed under a load that verifies what it reads."""
    reach_ceph()
    apply.create(SITE, CreatePlan(IN_RADOS, SIZE, "", "", adopt=False, store="ceph"))
    device = attach(IN_RADOS)
    assert backend(device) == f"{RUN}/{IN_RADOS}/nbd.sock"
    apply.open_volume(SITE, IN_RADOS, True)
    load = Load(device)
    time.sleep(2)
    kill(f"snf-archipelago-rados@{IN_RADOS}.service")()
    slowest = load.worst()
    apply.remove(SITE, IN_RADOS)
    return f"slowest request {slowest:.1f} s"


def check_nothing_is_left() -> str:
    for name in (ONE, TWO, LOOPED):
        apply.remove(SITE, name)
    assert list(RUN.iterdir()) == []
    assert list(DEVICES.iterdir()) == []
    assert list(Path("/sys/block").glob("nbd*/backend")) == []
    assert sh("systemctl", "list-units", "--all", "--plain", "--no-legend", "snf-archipelago*@*") == ""
    return ""


def main() -> int:
    failed = 0
    began = time.monotonic()
    print(f"kernel {os.uname().release}")
    for name, check in list(globals().items()):
        if not name.startswith("check_"):
            continue
        started = time.monotonic()
        try:
            text = check()
        except BaseException:
            failed += 1
            print(f"failed {name} {json.dumps(traceback.format_exc()[-3000:])}", flush=True)
            print(sh("journalctl", "-b", "-n", "80", "--no-pager")[-6000:], flush=True)
            continue
        print(f"ok {name} {time.monotonic() - started:.1f} s {text}", flush=True)
    print(f"done {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: BSD-2-Clause
"""A guest that writes all the time, on a store that two nodes share: it moves, its server, its QEMU and its node die.

Whatever was said to be durable must be there. The tests follow each other: one guest lives through all of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.e2e.guest import Guest, Load, parameters
from tests.e2e.place import IMAGE, NODES
from tests.place import TESTBED, Outcome, done, eventually, host, tried

pytestmark = pytest.mark.timeout(900)

NAME = "store1.test"
COPY = "store2.test"
SIZE = 256
"""MiB of the disk that is written to."""

PROVIDER = "/usr/share/ganeti/extstorage/archipelago"
ADD = (
    "-t",
    "ext",
    "-H",
    "kvm:kvm_extra=-readconfig /src/tests/e2e/odd-memory.cfg",
    "--no-name-check",
    "--no-ip-check",
    "-B",
    "minmem=128M,maxmem=128M,vcpus=1",
)
NIC = ("--net", "0:ip=pool,network=public")
OS = ("-o", "snf-image+default")
PLAIN = ("-O", "img_id=null,img_format=diskdump")
RUNTIME = "/var/run/ganeti/kvm-hypervisor"


#: For what does not depend on the store.
ONCE = pytest.mark.parametrize("store", ["main"], indirect=True)


@pytest.fixture(scope="module", params=["main", "ceph"])
def store(node1: str, request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def objects(store: str) -> set[str]:
    """What the store had before. A collection leaves a lock."""
    done("archipelago", "gc", "--store", store)
    return objects_of(store)


def objects_of(store: str) -> set[str]:
    if store == "ceph":
        found = done("rados", "--pool=snf-archipelago", "--all", "ls").split()
        # Not the tables and locks of the store, which stay.
        return {name for name in found if name.startswith(("body.", "content.", "data.", "head.", "index.", "lock."))}
    return set(done("find", "/srv/shared/store", "-type", "f").splitlines())


def disk(index: int, store: str, size: int, origin: str = "") -> tuple[str, str]:
    """A disk, as `gnt-instance add` takes it."""
    cloned = f",origin={origin}" if origin else ""
    return "--disk", f"{index}:size={size}M,provider=archipelago,store={store}{cloned}"


@pytest.fixture(scope="module")
def guest(store: str, objects: set[str]) -> Iterator[Guest]:
    """It has a system disk and an empty one."""
    done(
        *("gnt-instance", "add", "-n", "node1.testbed", *ADD, *OS, "-O", parameters(), *NIC),
        *disk(0, store, 128, IMAGE),
        *disk(1, store, SIZE),
        *("--tags", "synnefo:network:0:unprotected", NAME),
    )
    yield Guest(NAME)
    for name in (NAME, COPY):
        tried("gnt-instance", "remove", "-f", "--ignore-failures", "--shutdown-timeout=0", name)


@pytest.fixture(scope="module")
def load(guest: Guest) -> Iterator[Load]:
    load = Load(guest)
    load.start()
    yield load
    load.abandon()


def provider(action: str, volume: str, node: str, **variables: str) -> Outcome:
    """Call a script of the provider as Ganeti does."""
    words = [f"{name}={value}" for name, value in variables.items()]
    fixed = (f"VOL_NAME={volume}", "EXTP_PROVIDER=archipelago", "EXTP_ACCESS=userspace")
    return tried("env", *fixed, *words, f"{PROVIDER}/{action}", place=node)


def checked(load: Load) -> None:
    """Nothing is missing, and the writing goes on."""
    load.progress()
    load.stop()
    load.check()
    load.start()


def other(node: str) -> str:
    return "node1" if node == "node2" else "node2"


@contextlib.contextmanager
def slow_migration() -> Iterator[str]:
    """A migration whose memory transfer has begun, and does not end by itself; the number of its job."""
    done("gnt-cluster", "modify", "-H", "kvm:migration_bandwidth=1")
    try:
        job = tried("gnt-instance", "migrate", "-f", "--submit", NAME).said.split()[-1]
        eventually("memory transfer", lambda: "starting memory" in done("gnt-job", "info", job), seconds=60)
        try:
            yield job
            eventually("end of the job", lambda: not done("gnt-job", "list", "--running", "--no-headers"), seconds=60)
        except BaseException:
            kill_job(job)
            raise
    finally:
        done("gnt-cluster", "modify", "-H", "kvm:migration_bandwidth=100")


def kill_job(job: str) -> None:
    """Its process is killed in the midst of its work."""
    done("gnt-job", "cancel", "--force", "--kill", "--yes-do-it", job)


def kill_qemu(node: str) -> None:
    done("sh", "-ec", f"kill -9 $(cat {RUNTIME}/pid/{NAME})", place=node)


def served(node: str) -> set[str]:
    """The volumes that are attached on a node."""
    return set(done("ls", "/run/snf-archipelago", place=node).split())


def test_migrations_lose_no_write(guest: Guest, load: Load) -> None:
    for _ in range(2):
        target = other(guest.node)
        done("gnt-instance", "migrate", "-f", NAME)
        assert guest.node == target
        load.progress()
        assert not served(other(target))
    checked(load)


def test_a_second_writer_is_refused_by_name(guest: Guest, load: Load) -> None:
    volume, home = guest.volume(1), guest.node
    away = other(home)
    assert provider("attach", volume, away).status == 0
    refused = provider("open", volume, away, VOL_OPEN_EXCLUSIVE="True")
    assert refused.status != 0
    assert home in refused.stderr.splitlines()[-1]
    for action in ("close", "detach"):
        assert provider(action, volume, away).status == 0
    assert not served(away)
    load.progress()


def test_a_killed_server_is_not_noticed(guest: Guest, load: Load) -> None:
    for index in (1, 0, 1):
        servers = json.loads(done("archipelago", "server", "list", "--json", place=guest.node))
        (pid,) = [str(server["pid"]) for server in servers if server["name"] == guest.volume(index)]
        done("kill", "-KILL", pid, place=guest.node)
        load.progress()
    checked(load)
    assert "error" not in guest.ask("dmesg | grep vd").lower()


def test_a_migration_whose_target_dies(guest: Guest, load: Load) -> None:
    home = guest.node
    with slow_migration():
        kill_qemu(other(home))
    assert (guest.node, guest.status) == (home, "running")
    assert not served(other(home))
    checked(load)


def test_cleanup_after_a_migration_that_did_not_come_about(guest: Guest, load: Load) -> None:
    home = guest.node
    with slow_migration() as job:
        kill_job(job)
        kill_qemu(other(home))
    done("gnt-instance", "migrate", "-f", "--cleanup", NAME)
    assert (guest.node, guest.status) == (home, "running")
    checked(load)


@ONCE
def test_failover_of_a_running_guest(guest: Guest, load: Load) -> None:
    home = guest.node
    done("gnt-instance", "failover", "-f", "--shutdown-timeout=10", NAME)
    load.abandon()
    assert guest.node == other(home)
    assert not served(home)
    load.check(doubt=load.DOUBT)
    load.start()


def befall(fate: str) -> None:
    outcome = host(TESTBED, fate, "node2")
    assert outcome.status == 0, outcome.said


def on_node2(guest: Guest) -> None:
    if guest.node != "node2":
        done("gnt-instance", "migrate", "-f", NAME)


def write_as_the_old_qemu(volume: str) -> Outcome:
    script = "import nbd, sys; h = nbd.NBD(); h.connect_unix(sys.argv[1]); h.pwrite(bytes(4096), 0); h.flush()"
    socket = f"/run/snf-archipelago/{volume}/nbd.sock"
    return tried("/usr/bin/python3", "-c", script, socket, place="node2")


def failed_requests(volume: str, node: str) -> int:
    servers = json.loads(done("archipelago", "server", "list", "--json", place=node))
    return sum(int(server["requests"]["errors"]) for server in servers if server["name"] == volume)


def lose_node2(guest: Guest, load: Load, fate: str) -> None:
    """The guest runs there and writes."""
    on_node2(guest)
    load.progress()
    # First said and then done, or the master waits minutes for the node's answers.
    done("gnt-node", "modify", "--offline=yes", "--force", "node2.testbed")
    befall(fate)
    load.abandon()


def node2_wakes_up(guest: Guest) -> None:
    """Its guest knows of nothing and writes on, to no effect; then an administrator tidies up."""
    befall("thaw")
    eventually("failed write", lambda: failed_requests(guest.volume(1), "node2") > 0, seconds=60)
    assert write_as_the_old_qemu(guest.volume(1)).status != 0
    kill_qemu("node2")
    for index in range(2):
        assert provider("detach", guest.volume(index), "node2").status == 0
    done("gnt-node", "modify", "--offline=no", "--force", "node2.testbed")


def went_on_at_node1(guest: Guest, load: Load) -> None:
    assert (guest.node, guest.status) == ("node1", "running")
    load.check(doubt=load.DOUBT)
    load.start()


def test_failover_from_a_node_that_hangs_and_one_that_died(guest: Guest, load: Load, store: str) -> None:
    """RADOS shuts the old writer out. The files store has nothing that could, and leaves the volume to it."""
    failover = ("gnt-instance", "failover", "-f", NAME)
    lose_node2(guest, load, "freeze")
    if store == "ceph":
        done(*failover)
        node2_wakes_up(guest)
        went_on_at_node1(guest, load)
        lose_node2(guest, load, "kill")
        done(*failover)
    else:
        refused = tried(*failover)
        assert refused.status != 0
        assert "node2" in refused.said
        befall("kill")
        done("gnt-instance", "start", "--ignore-offline", NAME)
    went_on_at_node1(guest, load)


def test_a_node_that_comes_back_can_not_write(guest: Guest, load: Load) -> None:
    befall("boot")
    done("gnt-node", "add", "--readd", "--no-ssh-key-check", "node2.testbed")
    assert not served("node2")
    volume = guest.volume(1)
    assert provider("attach", volume, "node2").status == 0
    refused = provider("open", volume, "node2", VOL_OPEN_EXCLUSIVE="True")
    assert refused.status != 0
    assert "node1" in refused.stderr.splitlines()[-1]
    assert write_as_the_old_qemu(volume).status != 0
    for action in ("close", "detach"):
        assert provider(action, volume, "node2").status == 0
    checked(load)


def test_export_of_a_running_guest_and_import(guest: Guest, load: Load, store: str) -> None:
    said = load.said()
    done("gnt-backup", "export", "-n", "node1.testbed", "--noshutdown", NAME)
    load.progress()
    done(
        *("gnt-backup", "import", "-n", "node2.testbed", "--src-node=node1.testbed"),
        *(f"--src-dir=/var/lib/ganeti/export/{NAME}", *ADD, *NIC, *disk(0, store, 128), *disk(1, store, SIZE), COPY),
    )
    load.check(Guest(COPY).volume(1), "node2", said=said, doubt=load.SINCE)
    done("gnt-instance", "remove", "-f", COPY)
    done("gnt-backup", "remove", NAME)


def test_clone_of_a_disk_in_use(guest: Guest, load: Load, store: str) -> None:
    said = load.said()
    done("archipelago", "snapshot", "create", guest.volume(1), "moment", "--store", store)
    load.progress()
    clone = ("--no-install", "--no-start", *disk(0, store, SIZE, "moment"))
    done("gnt-instance", "add", "-n", "node2.testbed", *ADD, *OS, *PLAIN, *NIC, *clone, COPY)
    load.check(Guest(COPY).volume(), "node2", said=said, doubt=load.SINCE)
    done("archipelago", "snapshot", "remove", "moment", "--store", store)
    load.check(Guest(COPY).volume(), "node2", said=said, doubt=load.SINCE)
    done("gnt-instance", "remove", "-f", COPY)


def sectors(guest: Guest, name: str) -> int:
    return int(guest.ask(f"cat /sys/block/{name}/size") or 0)


@ONCE
def test_a_grown_disk_is_seen(guest: Guest, load: Load) -> None:
    done("gnt-instance", "grow-disk", NAME, "1", "64M")
    eventually("larger disk", lambda: sectors(guest, "vdb") == (SIZE + 64) << 11, seconds=30)
    load.progress()


@ONCE
def test_a_disk_comes_moves_and_goes(guest: Guest, load: Load, store: str) -> None:
    done("gnt-instance", "modify", "--hotplug", "--disk", f"add:size=64M,provider=archipelago,store={store}", NAME)
    eventually("third disk", lambda: sectors(guest, "vdc") == 64 << 11, seconds=30)
    digest = "dd if=/dev/vdc bs=1M count=8 2>/dev/null | md5sum"
    before = guest.ask(f"head -c 8388608 /dev/urandom > /dev/vdc; sync; {digest}")
    done("gnt-instance", "migrate", "-f", NAME)
    assert guest.ask(f"echo 3 > /proc/sys/vm/drop_caches; {digest}") == before
    done("gnt-instance", "modify", "--hotplug", "--disk", "remove", NAME)
    eventually("end of the third disk", lambda: sectors(guest, "vdc") == 0, seconds=30)
    checked(load)


@ONCE
def test_reinstall_and_rename_leave_the_data(guest: Guest, load: Load) -> None:
    load.stop()
    done("gnt-instance", "stop", NAME)
    assert not served(guest.node)
    done("gnt-instance", "reinstall", "-f", "-O", parameters(), NAME)
    # Ganeti asks at a terminal whether it may rename, unless the name is known.
    done("sh", "-ec", f"printf '%s\\n' '203.0.113.1 {NAME}' '203.0.113.2 {COPY}' >> /etc/hosts")
    done("gnt-instance", "rename", "--no-ip-check", NAME, COPY)
    done("gnt-instance", "rename", "--no-ip-check", COPY, NAME)
    done("gnt-instance", "start", NAME)
    load.check()
    assert guest.ask("hostname") == NAME


@ONCE
def test_recreate_a_lost_disk(guest: Guest, store: str) -> None:
    volume = guest.volume(1)
    done("gnt-instance", "stop", "--timeout=0", NAME)
    done("archipelago", "volume", "remove", volume, "--store", store)
    done("gnt-instance", "recreate-disks", "--disk=1", NAME)
    done("gnt-instance", "start", NAME)
    assert guest.ask("head -c 8388608 /dev/vdb | tr -d '\\0' | wc -c") == "0"


@ONCE
def test_commands_for_other_kinds_of_disks(guest: Guest) -> None:
    """They do their work or are refused; the guest's disks are what they were."""
    disks = {guest.volume(0), guest.volume(1)}
    done("gnt-instance", "stop", "--timeout=0", NAME)
    for command in (("move", "-f", "-n", f"{other(guest.node)}.testbed"), ("replace-disks", "-p")):
        refused = tried("gnt-instance", *command, NAME)
        assert refused.status != 0, refused.said
        assert "prerequisites not met" in refused.said
    assert not served(guest.node)
    assert done("gnt-instance", "activate-disks", "--ignore-size", NAME).count("disk/") == 2
    assert served(guest.node) == disks
    done("gnt-instance", "deactivate-disks", NAME)
    assert not served(guest.node)


FILES = "/srv/ganeti/file-storage"
CONVERTED = "store3.test"


@pytest.fixture
def with_file_disks() -> Iterator[None]:
    """Ganeti's own disks in files are there to convert from and to."""
    for node in NODES:
        done("sh", "-ec", f"mkdir -p {FILES}; echo {FILES} > /etc/ganeti/file-storage-paths", place=node)
    templates = ("--enabled-disk-templates", "--ipolicy-disk-templates")
    done("gnt-cluster", "modify", f"--file-storage-dir={FILES}", *(f"{option}=ext,file" for option in templates))
    yield
    tried("gnt-instance", "remove", "-f", "--ignore-failures", CONVERTED)
    done("gnt-cluster", "modify", *(f"{option}=ext" for option in templates))


@ONCE
@pytest.mark.usefixtures("with_file_disks", "guest")
def test_conversion_of_disks() -> None:
    """From Ganeti's files to a store, to the other store and back; never by a way that loses the content."""
    plain = ("--no-nics", "--no-install", "--no-start", "--disk", "0:size=16M")
    done("gnt-instance", "add", "-n", "node1.testbed", "-t", "file", *ADD[2:], *OS, *PLAIN, *plain, CONVERTED)
    digest = ("sh", "-ec", f"cat {FILES}/{CONVERTED}/* | md5sum")
    done("sh", "-ec", f"head -c 16M /dev/urandom > $(ls {FILES}/{CONVERTED}/*)")
    before = done(*digest)
    convert = ("gnt-instance", "modify", "-t")
    to_main = ("ext", "--ext-params", "provider=archipelago,store=main")
    refused = tried(*convert, *to_main, CONVERTED)
    assert refused.status != 0, refused.said
    assert "device=loop" in refused.said
    assert done(*digest) == before
    done(*convert, *to_main[:2], f"{to_main[2]},device=loop", CONVERTED)
    # Ganeti converts from one provider to another: the old name is another.
    done(*convert, "ext", "--ext-params", "provider=vlmc,store=ceph,device=loop", CONVERTED)
    done("gnt-instance", "modify", "--disk", "0:modify,device=none", CONVERTED)
    refused = tried(*convert, "file", CONVERTED)
    assert refused.status != 0, refused.said
    assert "device=loop" in refused.said
    done("gnt-instance", "modify", "--disk", "0:modify,device=loop", CONVERTED)
    done(*convert, "file", CONVERTED)
    assert done(*digest) == before
    assert CONVERTED not in done("archipelago", "volume", "list")


def test_nothing_is_left(guest: Guest, store: str, objects: set[str]) -> None:
    done("gnt-instance", "remove", "-f", "--shutdown-timeout=0", NAME)
    for node in NODES:
        assert not served(node)

    def nothing_more() -> bool:
        done("archipelago", "gc", "--store", store)
        return objects_of(store) <= objects

    eventually("store without what the instance had", nothing_more, seconds=30)

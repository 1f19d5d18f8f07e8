# SPDX-License-Identifier: BSD-2-Clause
"""Show what snf-ganeti does, on a fresh Debian node made for the occasion.

Builds the packages, installs them in a new node as an administrator would, makes two customized, firewalled thin
clones of a real Debian image with plain Ganeti commands, proves from outside that they are what was asked for, and
clones a third from a snapshot of a running one. Removes everything it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ganeti_plugin.errors import Error, StateError
from ganeti_plugin.files import LockedError, locked
from ganeti_plugin.run import spawn
from tests.demo.guests import QUESTIONS, Answers, Guest, Keys, look_up
from tests.demo.steps import ProofFailedError, Report
from tests.place import ROOT, TESTBED, done, eventually

IMAGE = "debian-12"
IMAGE_FILE = "/srv/cache/guest/debian-12.raw"
GATEWAY = "198.51.100.1"
FORGED = "198.51.100.250"
FORGED6 = "2001:db8:1::bad"
MARKER = "/root/written-before-the-snapshot"
DISK = "2G"

#: Seconds that the wire is watched at the most while a guest sends with forged addresses, and after it has sent.
WATCH = 120
AFTER = 2.0

#: Seconds that a guest may need to boot under emulation, all of them at once.
BOOT = 300.0


class BusyError(LockedError):
    template = "another './run demo' is running on this machine"
    hint = "wait for it to end"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the demonstration's lock: two of them would fight for the same testbed."""
    path = Path("/run/lock/snf-ganeti-demo")
    try:
        with locked(path, timeout=0):
            yield
    except LockedError:
        raise BusyError from None


def demonstrate(*, keep: bool) -> int:
    """Run all steps; 0 when every proof held."""
    report = Report()
    with alone(), tempfile.TemporaryDirectory(prefix="snf-ganeti-demo-") as directory:
        keys_directory = Path(directory)
        if keep:
            keys_directory = ROOT / "build/demo"
            keys_directory.mkdir(parents=True, exist_ok=True)
            (keys_directory / "id_ed25519").unlink(missing_ok=True)
        keys = Keys.make(keys_directory, secrets.token_urlsafe(9))
        try:
            act(report, keys)
        except Error as error:
            print(f"the demonstration stops here: {error}", flush=True)
        finally:
            if not keep:
                with report.step("remove everything that was started"):
                    testbed("down")
    report.save(ROOT / "build/demo.json")
    print("\n" + report.table(), flush=True)
    if keep:
        print(how_to_look_around(keys))
    return 0 if report.passed else 1


def how_to_look_around(keys: Keys) -> str:
    ssh = " ".join(keys.ssh_command("ADDRESS"))
    return (
        f"\nEverything is left running. Look around:\n  {TESTBED} exec node1 gnt-instance list -o +nic.ips\n"
        f"  {TESTBED} exec node1 archipelago volume list\n  {TESTBED} exec outside {ssh}\n"
        f"Remove it:\n  {TESTBED} down"
    )


def testbed(*arguments: str) -> None:
    """Run a subcommand of the testbed with its progress on our terminal."""
    show(TESTBED, *arguments)


def show(*command: str | Path) -> None:
    """Run a program whose output belongs on the user's terminal."""
    words = [str(word) for word in command]
    ended = subprocess.run(words, stdin=subprocess.DEVNULL, check=False, cwd=ROOT)
    if ended.returncode:
        raise StateError(message=f"'{' '.join(words)}' ended with {ended.returncode}, see above")


def act(report: Report, keys: Keys) -> None:
    with report.step("build the Debian packages and a local repository"):
        show(ROOT / "run", "repo")
    with report.step("fresh node: install snf-ganeti with apt, bring up the cluster"):
        testbed("up", "--nodes", "1", "--fresh")
    with report.step("make a Debian guest image"):
        show(ROOT / "tests/guest/build-image")
    with report.step("import it into Archipelago"):
        show(TESTBED, "exec", "node1", "archipelago", "image", "import", IMAGE, IMAGE_FILE, "--format", "raw")
    with report.step("define the network 'public' (IPv4 and IPv6)"):
        add_network()
    web1 = add_instance(report, "web1", f"origin={IMAGE}", "limited", keys)
    web2 = add_instance(report, "web2", f"origin={IMAGE}", "protected", keys)
    prove_guests(report, web1, web2, keys)
    snapshot(report, web1, keys)


def add_network() -> None:
    addresses = ("--network=198.51.100.0/24", f"--gateway={GATEWAY}")
    addresses6 = ("--network6=2001:db8:1::/64", "--gateway6=2001:db8:1::1")
    done("gnt-network", "add", *addresses, *addresses6, "--add-reserved-ips", FORGED, "public")
    done("gnt-network", "connect", "--nic-parameters", "mode=routed,link=100", "public")


def add_instance(report: Report, name: str, origin: str, profile: str, keys: Keys) -> Guest:
    """One plain `gnt-instance add`, as an administrator types it."""
    with report.step(f"gnt-instance add {name}: clone, customize, start ({profile})") as words:
        done(
            *("gnt-instance", "add", "-n", "node1", "-t", "ext"),
            *("--disk", f"0:size={DISK},provider=archipelago,{origin}"),
            *("-o", "snf-image+default", "-O", f"img_id=null,img_format=diskdump,auth_keys={keys.public}"),
            *("--os-parameters-private", f"img_passwd={keys.password}"),
            *("--net", "0:ip=pool,network=public", "--tags", f"synnefo:network:0:{profile}"),
            *("-B", "minmem=384M,maxmem=384M,vcpus=1", "--no-name-check", "--no-ip-check", name),
        )
        guest = look_up(name)
        words.append(f"{guest.ip} and {guest.ip6}")
    return guest


def prove_guests(report: Report, web1: Guest, web2: Guest, keys: Keys) -> None:
    for guest in (web1, web2):
        report.prove(f"{guest.name} answers ping over IPv4", lambda g=guest: ping(g.ip))  # type: ignore[misc]
        report.prove(f"{guest.name} answers ping over IPv6", lambda g=guest: ping(g.ip6))  # type: ignore[misc]
    answers: list[Answers] = []
    report.prove("web1 lets the key in over ssh", lambda: ask_by_ssh(web1, keys, answers))
    report.prove("web2 lets the password in on its console", lambda: ask_by_console(web2, keys, answers))
    report.prove("two host names, machine ids and host keys", lambda: different(answers))
    report.prove("root file systems as large as their disks", lambda: grown(answers))
    report.prove("web2 (protected) refuses a TCP connection that web1 (limited) accepts", lambda: firewall(web1, web2))
    report.prove("web1: a packet with a forged source does not leave", lambda: no_forgery(web1, keys.ssh))
    report.prove("web2: a packet with a forged source does not leave", lambda: no_forgery(web2, keys.console))


def ping(address: str, seconds: float = BOOT) -> str:
    once = ("ping", "-n", "-c", "1", "-W", "2", address)
    eventually(f"answer from {address}", lambda: done(*once, place="outside"), seconds=seconds)
    return address


def ask_by_ssh(guest: Guest, keys: Keys, answers: list[Answers]) -> str:
    answer = eventually("ssh session", lambda: keys.ssh(guest, QUESTIONS), seconds=BOOT)
    answers.append(Answers.parse(answer))
    return expect_name(guest, answers[-1])


def ask_by_console(guest: Guest, keys: Keys, answers: list[Answers]) -> str:
    answers.append(Answers.parse(keys.console(guest, QUESTIONS, seconds=BOOT)))
    return expect_name(guest, answers[-1])


def expect_name(guest: Guest, answer: Answers) -> str:
    if answer.host_name != guest.name:
        raise ProofFailedError(claim=f"{guest.name}'s host name", found=answer.host_name)
    return f"it calls itself {answer.host_name}"


def different(answers: list[Answers]) -> str:
    if len(answers) != 2:
        raise ProofFailedError(claim="two guests were asked", found=f"{len(answers)} answered")
    for fact in ("host_name", "machine_id", "host_key"):
        values = [getattr(answer, fact) for answer in answers]
        if len(set(values)) != 2 or not all(values):
            raise ProofFailedError(claim=f"{fact} differs", found=values)
    return "all differ"


def grown(answers: list[Answers]) -> str:
    if not answers:
        raise ProofFailedError(claim="root file system", found="no guest answered")
    for answer in answers:
        if not answer.fills_its_disk():
            raise ProofFailedError(claim=answer.host_name, found=f"{answer.root_bytes} of {answer.disk_bytes} bytes")
    return ", ".join(f"{a.host_name}: {a.root_bytes >> 20} of {a.disk_bytes >> 20} MiB" for a in answers)


def firewall(open_guest: Guest, closed_guest: Guest) -> str:
    probe = "import socket,sys; socket.create_connection((sys.argv[1], 22), 5)"
    done("/usr/bin/python3", "-c", probe, open_guest.ip, place="outside")
    for address in (closed_guest.ip, closed_guest.ip6):
        try:
            done("/usr/bin/python3", "-c", probe, address, place="outside")
        except StateError:
            continue
        raise ProofFailedError(claim=f"{address} port 22 is closed", found="a connection was made")
    return "port 22"


def no_forgery(guest: Guest, tell: Callable[[Guest, str], str]) -> str:
    """Let the guest send with its own address and with foreign ones; count on the wire what comes out."""
    command = (
        f"ip addr add {FORGED}/32 dev eth0; ip -6 addr add {FORGED6}/128 dev eth0 nodad; "
        f"ping -n -c 3 -W 1 {GATEWAY} >/dev/null; ping -n -c 3 -W 1 -I {FORGED} {GATEWAY} >/dev/null; "
        f"ping -n -c 3 -W 1 -I {FORGED6} 2001:db8:1::1 >/dev/null; "
        f"ip addr del {FORGED}/32 dev eth0; ip -6 addr del {FORGED6}/128 dev eth0; echo sent"
    )
    interface = json.loads(done("ip", "-j", "-4", "route", "get", guest.ip, place="outside"))[0]["dev"]
    arguments = ["/usr/bin/python3", str(ROOT / "tests/demo/watch.py"), interface, str(WATCH)]
    watcher = [TESTBED, "exec", "outside", *arguments, guest.ip, FORGED, FORGED6]
    with spawn(watcher, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ) as watch:
        try:
            assert watch.stdout is not None
            if watch.stdout.readline() != b"watching\n":
                raise ProofFailedError(claim="the wire is watched", found="the watcher ended")
            tell(guest, command)
            time.sleep(AFTER)
            said, _ = watch.communicate(timeout=30)
        finally:
            watch.kill()
    lines = said.decode().splitlines()
    counts = {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) == 2}
    if counts.get(guest.ip, 0) < 3:
        raise ProofFailedError(claim="the guest's own packets leave", found=counts)
    if counts[FORGED] or counts[FORGED6]:
        raise ProofFailedError(claim="forged packets stay inside", found=counts)
    return f"{counts[guest.ip]} own packets seen, 0 forged"


def snapshot(report: Report, web1: Guest, keys: Keys) -> None:
    with report.step("snapshot web1's disk while it runs"):
        keys.ssh(web1, f"echo kept > {MARKER}; sync")
        done("archipelago", "snapshot", "create", web1.volume, "golden")
    web3 = add_instance(report, "web3", "origin=golden", "limited", keys)
    report.prove("web3 answers ping over IPv4", lambda: ping(web3.ip))

    def marker() -> str:
        text = eventually("ssh session", lambda: keys.ssh(web3, f"hostname; cat {MARKER}"), seconds=BOOT)
        if text.split() != ["web3", "kept"]:
            raise ProofFailedError(claim="web3 has the file and its own name", found=text)
        return "it has the file that web1 wrote, and its own name"

    report.prove("web3 is a clone of the snapshot", marker)

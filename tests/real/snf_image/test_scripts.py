# SPDX-License-Identifier: BSD-2-Clause
"""The OS definition's scripts on real disks, with the real helper VM in its real sandbox."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snf_image import locks
from snf_image.confined import confined
from snf_image.sandbox import Limits, Sandbox
from tests.real.loops import loop_device
from tests.real.snf_image import helper_vm as vm
from tests.real.snf_image import os_definition as scripts

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("helper_vm")]

MIB = 1 << 20
SIZE = 256 * MIB
PREFIX = "test-scripts-"


@pytest.fixture(scope="module")
def image(module_folder: Path) -> Path:
    """A raw image of a Debian-like system, 128 MiB."""
    tree = vm.make_tree(module_folder / "tree")
    return vm.make_disk(module_folder / "image", tree, size=128 * MIB, disk=128 * MIB)


@pytest.fixture(scope="module")
def names(image: Path) -> Iterator[dict[str, str]]:
    """The image in the image directory, in each container format."""
    scripts.IMAGES.mkdir(parents=True, exist_ok=True)
    raw, packed = scripts.IMAGES / f"{PREFIX}a.raw", scripts.IMAGES / f"{PREFIX}a.qcow2"
    shutil.copyfile(image, raw)
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, packed], check=True)
    yield {"raw": raw.name, "qcow2": packed.name}
    for path in scripts.IMAGES.glob(f"{PREFIX}*"):
        path.unlink()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert scripts.leftovers() == []


@pytest.fixture
def disk(folder: Path) -> Path:
    """A disk full of an earlier tenant's data."""
    path = folder / "disk"
    with path.open("wb") as stream:
        for _ in range(SIZE // MIB):
            stream.write(b"\xa5" * MIB)
    return path


@pytest.fixture
def device(disk: Path) -> Iterator[Path]:
    with loop_device(disk) as path:
        yield path


@pytest.fixture
def server(disk: Path, folder: Path) -> Iterator[str]:
    """An NBD server of the disk, as the data plane is one; its URI as Ganeti hands it over."""
    socket, pid = folder / "nbd.sock", folder / "pid"
    process = subprocess.Popen(["nbdkit", "--foreground", "-U", socket, "-P", pid, "file", disk])
    deadline = time.monotonic() + 10
    while not pid.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"nbd+unix:///?socket={socket},file.reconnect-delay=30"
    process.terminate()
    process.wait(10)


def check_customized(disk: Path) -> None:
    vm.debugfs(disk, "fsck")
    assert vm.read_file(disk, "etc/hostname") == "web1.example.org\n"
    assert scripts.KEY in vm.read_file(disk, "root/.ssh/authorized_keys")
    assert "198.51.100.10" in vm.read_file(disk, "etc/network/interfaces")
    assert vm.partition_end(disk) > (SIZE - 4 * MIB) // 512


def foreign_bytes(disk: Path) -> int:
    """How many MiB still hold what the earlier tenant left."""
    with disk.open("rb") as stream:
        return sum(b"\xa5" * 4096 in block for block in iter(lambda: stream.read(MIB), b""))


@pytest.mark.parametrize("container", ["raw", "qcow2"])
class TestDeploy:
    """Image on disk, customized, and nothing of an earlier tenant anywhere (H44)."""

    def test_on_a_block_device(self, device: Path, disk: Path, names: dict[str, str], container: str) -> None:
        scripts.create(device, OSP_IMG_ID=names[container])
        os.sync()
        check_customized(disk)
        assert foreign_bytes(disk) == 0

    def test_over_nbd(self, server: str, disk: Path, names: dict[str, str], container: str) -> None:
        log = scripts.create(uri=server, OSP_IMG_ID=names[container])
        check_customized(disk)
        assert foreign_bytes(disk) == 0
        assert '"type": "image-copy-progress"' in log
        assert '"progress": 100.0' in log

    def test_in_a_file(self, disk: Path, names: dict[str, str], container: str) -> None:
        scripts.create(disk, OSP_IMG_ID=f"local://{names[container]}")
        check_customized(disk)
        assert foreign_bytes(disk) == 0
        assert disk.stat().st_size == SIZE


def test_null_customizes_what_is_there(image: Path, folder: Path) -> None:
    disk = folder / "disk"
    shutil.copyfile(image, disk)
    os.truncate(disk, SIZE)
    log = scripts.create(disk, OSP_IMG_PASSWD="geheim", OSP_IMG_PROPERTIES='{"OSFAMILY": "linux"}')
    check_customized(disk)
    assert "geheim" not in log
    assert vm.read_file(disk, "etc/shadow").startswith("root:$6$")
    for subtype in ("task-start", "task-end"):
        assert f'"subtype": "{subtype}"' in log


def test_progress_monitor_gets_the_lines(image: Path, folder: Path) -> None:
    """And one that dies at once does no harm."""
    disk, settings = folder / "disk", Path("/etc/snf-ganeti/conf.d")
    shutil.copyfile(image, disk)
    monitor, setting = folder / "monitor", settings / "zz-test-monitor.toml"
    settings.mkdir(parents=True, exist_ok=True)
    try:
        for body, expected in (('cat > "$0.out"; echo "$1" > "$0.name"', True), ("exit 1", False)):
            monitor.write_text(f"#!/bin/sh\n{body}\n")
            monitor.chmod(0o755)
            setting.write_text(f'[image]\nprogress_monitor = "{monitor}"\n')
            scripts.create(disk)
            if expected:
                assert Path(f"{monitor}.name").read_text() == f"{scripts.INSTANCE}\n"
                assert '"type": "image-helper"' in Path(f"{monitor}.out").read_text()
    finally:
        setting.unlink(missing_ok=True)


BAD_INPUT = {
    "img_id missing": ({"OSP_IMG_ID": "-"}, "parameter img_id: it is required"),
    "img_format missing": ({"OSP_IMG_FORMAT": "-"}, "parameter img_format: it is required"),
    "format of no kind": ({"OSP_IMG_FORMAT": "vvfat"}, "parameter img_format: it is not one of"),
    "malformed JSON": ({"OSP_IMG_PROPERTIES": '{"A": '}, "parameter img_properties: it is not JSON"),
    "unknown parameter": ({"OSP_COLOUR": "red"}, "parameter colour: there is no such parameter"),
    "unknown image": ({"OSP_IMG_ID": f"{PREFIX}none.raw"}, "there is no such file"),
    "qcow2 called raw": ({"OSP_IMG_ID": f"{PREFIX}wrong.raw"}, "declared raw but carries the signature of qcow2"),
    "raw called qcow2": ({"OSP_IMG_ID": f"{PREFIX}wrong.qcow2"}, "declared qcow2 but looks like raw"),
    "too large": ({"OSP_IMG_ID": f"{PREFIX}large.raw"}, "but disk 0 of the instance has only"),
    "a link": ({"OSP_IMG_ID": f"{PREFIX}link.raw"}, "symbolic link"),
    "not built": ({"OSP_CONFIG_URL": "http://x/"}, "not supported by this release"),
    "no host name": ({"INSTANCE_NAME": "a b"}, "INSTANCE_NAME"),
    "no disk": ({"DISK_COUNT": "0"}, "it has no disk"),
}


@pytest.mark.parametrize("name", list(BAD_INPUT))
def test_bad_input_is_one_sentence_and_nothing_else(disk: Path, names: dict[str, str], name: str) -> None:
    images = scripts.IMAGES
    shutil.copyfile(images / names["qcow2"], images / f"{PREFIX}wrong.raw")
    shutil.copyfile(images / names["raw"], images / f"{PREFIX}wrong.qcow2")
    with (images / f"{PREFIX}large.raw").open("wb") as stream:
        stream.truncate(SIZE + 512)
    link = images / f"{PREFIX}link.raw"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc/shadow")
    variables, reason = BAD_INPUT[name]
    assert reason in scripts.refused(disk, **variables)
    assert foreign_bytes(disk) == SIZE // MIB, "something was written"


def test_a_disk_without_an_image_is_a_failed_task(disk: Path) -> None:
    assert "could not be customized" in scripts.refused(disk)


def test_verify() -> None:
    variables = {name: value for name, value in scripts.environment().items() if name.startswith(("OS_", "OSP_"))}
    assert scripts.script("verify", variables).returncode == 0
    done = scripts.script("verify", {**variables, "OSP_IMG_PROPERTIES": "[]"})
    assert (done.returncode, done.stderr) == (
        2, "error: snf-image: parameter img_properties: it is not a JSON object\n",
    )  # fmt: skip


def test_rename_touches_nothing(disk: Path) -> None:
    given = scripts.environment(disk, OLD_INSTANCE_NAME="web0.example.org")
    assert scripts.script("rename", given).returncode == 0
    assert foreign_bytes(disk) == SIZE // MIB


@pytest.mark.parametrize("kind", ["file", "nbd"])
def test_export_and_import(disk: Path, server: str, folder: Path, image: Path, kind: str) -> None:
    """Bytes stay bytes, though the guest has written a qcow2 header with a backing file on its disk (H16, H17)."""
    with disk.open("r+b") as stream:
        stream.write(b"QFI\xfb\0\0\0\x03" + (4096).to_bytes(8, "big") + (11).to_bytes(4, "big"))
        stream.seek(4096)
        stream.write(b"/etc/shadow")
    place = {"EXPORT_DISK_URI": server} if kind == "nbd" else {"EXPORT_DEVICE": str(disk)}
    reading, writing = os.pipe()
    given = scripts.environment(disk, EXPORT_INDEX="0", EXP_SIZE_FD=str(writing), **place)
    stream_file = folder / "stream"
    with stream_file.open("wb") as output:
        subprocess.run([scripts.SCRIPTS / "export"], env=given, stdout=output, pass_fds=[writing], check=True)
    os.close(writing)
    assert os.read(reading, 100) == b"%d\n" % SIZE
    os.close(reading)
    subprocess.run(["cmp", stream_file, disk], check=True)
    with stream_file.open("r+b") as stream:
        stream.seek(SIZE // 2)
        stream.write(b"changed")
    place = {"IMPORT_DISK_URI": server} if kind == "nbd" else {"IMPORT_DEVICE": str(disk)}
    given = scripts.environment(disk, IMPORT_INDEX="0", **place)
    with stream_file.open("rb") as source:
        subprocess.run([scripts.SCRIPTS / "import"], env=given, stdin=source, check=True)
    subprocess.run(["cmp", stream_file, disk], check=True)


def test_two_runs_on_one_disk(disk: Path, names: dict[str, str]) -> None:
    """V08: the second is refused at once, the first goes on."""
    first = scripts.start("create", scripts.environment(disk, OSP_IMG_ID=names["raw"]))
    wait_for(lambda: any("qemu-system" in line for line in scripts.processes()))
    assert "in use by another run" in scripts.refused(disk)
    output = first.communicate(timeout=150)
    assert first.returncode == 0, output
    check_customized(disk)


def test_a_running_instance_is_left_alone(disk: Path) -> None:
    """V08."""
    locks.KVM_PIDS.mkdir(parents=True, exist_ok=True)
    pid = locks.KVM_PIDS / scripts.INSTANCE
    guest = subprocess.Popen(["/bin/sh", "-c", "sleep 60; true", "-name", scripts.INSTANCE])
    pid.write_text(f"{guest.pid}\n")
    try:
        assert "is running on this node" in scripts.refused(disk)
    finally:
        guest.kill()
        guest.wait()
        pid.unlink()
    assert foreign_bytes(disk) == SIZE // MIB


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_death_of_the_parent_leaves_no_orphan(disk: Path, names: dict[str, str], number: signal.Signals) -> None:
    """V07: and the next run starts clean."""
    first = scripts.start("create", scripts.environment(disk, OSP_IMG_ID=names["raw"]))
    wait_for(lambda: any("qemu-system" in line for line in scripts.processes()))
    os.kill(first.pid, number)
    first.communicate(timeout=30)
    wait_for(lambda: not scripts.processes() and not scripts.units(), 10)
    if number == signal.SIGTERM:
        assert scripts.leftovers() == []
    scripts.create(disk, OSP_IMG_ID=names["raw"])
    check_customized(disk)


def test_nothing_secret_on_a_command_line(image: Path, folder: Path) -> None:
    """V09: neither the password nor its hash, on any command line of the node, at any moment of a run."""
    disk = folder / "disk"
    shutil.copyfile(image, disk)
    process = scripts.start("create", scripts.environment(disk, OSP_IMG_PASSWD="correct-horse"))
    seen: set[str] = set()
    while process.poll() is None:
        seen.update(scripts.processes())
        time.sleep(0.02)
    process.communicate(timeout=10)
    assert any("qemu-system" in line for line in seen)
    assert not any("correct-horse" in line for line in seen)


def test_a_tampered_helper_is_refused(disk: Path) -> None:
    """V11."""
    initrd = scripts.IMAGES / "helper" / "initrd"
    content = initrd.read_bytes()
    try:
        initrd.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "is not the file that was built" in scripts.refused(disk)
    finally:
        initrd.write_bytes(content)


def test_a_qcow2_that_passes_the_header_check_but_is_corrupt(disk: Path, names: dict[str, str]) -> None:
    """H07: the reader in its cage fails, and so does the creation."""
    path = scripts.IMAGES / f"{PREFIX}corrupt.qcow2"
    data = bytearray((scripts.IMAGES / names["qcow2"]).read_bytes())
    l1 = int.from_bytes(data[40:48], "big")
    l2 = int.from_bytes(data[l1 : l1 + 8], "big") & 0x00FF_FFFF_FFFF_FE00
    data[l2 : l2 + 4096] = b"\x80\0\0\0\0\x01\x02\0" * 512  # not aligned to a cluster
    path.write_bytes(data)
    assert "nbdcopy failed" in scripts.refused(disk, OSP_IMG_ID=path.name)


LOOK = """
ls / /dev /etc /run /home /root /var/lib; cat /etc/shadow /proc/1/cmdline; ls /proc | grep -c '^[0-9]'
for place in / /tmp /run /var/tmp /dev/shm /sandbox; do touch $place/x && echo "wrote to $place"; done
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ls /sys/class/net
mount -t tmpfs x /tmp && echo mounted
unshare --user true && echo unshared; id -u; exit 7
"""


def test_what_the_sandbox_shows() -> None:
    """V01, V02: no file of the node, no device, no network but its own, no privilege, nowhere to write."""
    cage = Sandbox(name="test", limits=Limits(memory=100, seconds=20))
    with confined(cage, ["/usr/bin/bash", "-c", LOOK], ()) as program:
        os.set_blocking(program.output, True)
        text = b"".join(iter(lambda: os.read(program.output, 65536), b"")).decode()
        assert program.popen.wait(20) == 7
    assert "root:" not in text
    assert not any(
        word in text for word in ("loop", "kvm", "fuse", "ganeti", "wrote to", "mounted\n", "unshared\n", "eth")
    )
    assert "CapEff:\t0000000000000000" in text
    assert "CapBnd:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    assert "Seccomp:\t2" in text
    assert text.splitlines()[-1] not in ("0", "65534")


def wait_for(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)

# SPDX-License-Identifier: BSD-2-Clause
"""The helper VM, built and booted for real, on images made here; read back with sfdisk, e2fsck and debugfs."""

from __future__ import annotations

import base64
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snf_image import builder, protocol
from tests.real.snf_image import helper_vm as vm

pytestmark = pytest.mark.timeout(180)

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("helper")
    builder.build(directory)
    return directory


@pytest.fixture(scope="module")
def warm_helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("warm")
    manifest = builder.build(directory, lambda arguments: vm.machine(directory, arguments))
    assert manifest.state is not None
    return directory


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make_image(extra: dict[str, tuple[str, int]] | None = None, **options: object) -> Path:
        change = options.pop("change", None)
        tree = vm.make_tree(tmp_path / "tree", extra)
        if callable(change):
            change(tree)
        return vm.make_disk(tmp_path / "disk", tree, **options)  # type: ignore[arg-type] # the tests' own keywords

    return make_image


def test_every_task_on_an_msdos_image(helper: Path, make: Make) -> None:
    image = make()
    wanted = vm.request()
    run = vm.customize(helper, wanted, [image])
    assert run.result.ok, run.result.message
    assert run.code == 0
    assert run.result.nonce == wanted.nonce
    assert vm.debugfs(image, "fsck")
    # The partition and its file system reach the end (less the tail that msdos tables keep free).
    assert vm.partition_end(image) == 2 * 1024 * 1024 - 2048
    blocks = int(re.findall(r"Block count:\s+(\d+)", vm.debugfs(image, "stats -h"))[0])
    assert blocks * 4096 == (vm.partition_end(image) - 2048) * 512
    assert vm.read_file(image, "etc/hostname") == "web1.example.org\n"
    assert "127.0.1.1\tweb1.example.org web1\n" in vm.read_file(image, "etc/hosts")
    assert re.fullmatch(r"[0-9a-f]{32}\n", vm.read_file(image, "etc/machine-id"))
    assert vm.read_file(image, "etc/machine-id") != vm.FILES["etc/machine-id"][0]
    assert_credentials(image)
    assert_network(image)
    assert_host_keys(image, run.result)


def assert_credentials(image: Path) -> None:
    shadow = vm.read_file(image, "etc/shadow").splitlines()
    assert re.match(r"root:\$6\$[./0-9A-Za-z]{16}\$[./0-9A-Za-z]{86}:\d{5}:0:99999:7:::$", shadow[0])
    assert shadow[2] == "user:*:19000:0:99999:7:::"
    assert "Mode:  0640" in vm.debugfs(image, "stat /etc/shadow")
    assert vm.read_file(image, "root/.ssh/authorized_keys").startswith("ssh-ed25519 AAAAC3")
    assert "Mode:  0700" in vm.debugfs(image, "stat /root/.ssh")
    assert "Mode:  0600" in vm.debugfs(image, "stat /root/.ssh/authorized_keys")


def assert_network(image: Path) -> None:
    interfaces = vm.read_file(image, "etc/network/interfaces")
    assert "address 198.51.100.7/24" in interfaces
    assert "gateway 198.51.100.1" in interfaces
    assert "address 2001:db8:1:0:a800:ff:fe12:3456/64" in interfaces
    assert "gateway 2001:db8:1::1" in interfaces


def assert_host_keys(image: Path, result: protocol.Result) -> None:
    assert "ssh_host_rsa_key" not in vm.debugfs(image, "ls -p /etc/ssh")
    for kind in ("ed25519", "ecdsa"):
        public = vm.read_file(image, f"etc/ssh/ssh_host_{kind}_key.pub")
        assert public.startswith(result.facts[f"host_key_{kind}"])
        assert vm.read_file(image, f"etc/ssh/ssh_host_{kind}_key").startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
        assert "Mode:  0600" in vm.debugfs(image, f"stat /etc/ssh/ssh_host_{kind}_key")


def test_gpt(helper: Path, make: Make) -> None:
    image = make(label="gpt")
    run = vm.customize(helper, vm.request(), [image])
    assert run.result.ok, run.result.message
    assert run.result.facts["partition_table"] == "gpt"
    verdict = subprocess.run(["sfdisk", "--verify", image], capture_output=True, text=True, check=True)
    assert "No errors detected." in verdict.stdout
    assert vm.partition_end(image) == 2 * 1024 * 1024 - 2048
    assert vm.debugfs(image, "fsck")


def test_personality_and_a_given_hash(helper: Path, make: Make) -> None:
    image = make()
    file = protocol.PersonalityFile(path="/srv/deep/motd", contents=base64.b64encode(b"welcome").decode(), mode=0o644)
    run = vm.customize(helper, vm.request(password=None, password_hash="$6$x$y", personality=(file,)), [image])
    assert run.result.ok, run.result.message
    assert vm.read_file(image, "srv/deep/motd") == "welcome"
    assert "root:$6$x$y:" in vm.read_file(image, "etc/shadow")


@pytest.mark.parametrize("is_warm", [False, True])
def test_a_second_disk_that_fstab_mounts(warm_helper: Path, make: Make, tmp_path: Path, *, is_warm: bool) -> None:
    """The user's home lies on another disk: the key must go there, not below the mount point."""
    fstab = "LABEL=root / ext4 errors=remount-ro 0 1\nLABEL=data /home ext4 defaults 0 2\n"
    image = make({"etc/fstab": (fstab, 0o644)})
    (tmp_path / "data/user").mkdir(parents=True)
    data = vm.make_disk(tmp_path / "second", tmp_path / "data", name="data", size=64 * vm.MIB, disk=64 * vm.MIB)
    disks = tuple(protocol.Disk(index=number, serial=f"snf-disk-{number}") for number in range(2))
    wanted = vm.request(disks=disks, users=("user",))
    run = vm.customize(warm_helper, wanted, [image, data], is_warm=is_warm)
    assert run.result.ok, run.result.message
    assert vm.read_file(data, "user/.ssh/authorized_keys").startswith("ssh-ed25519")
    assert "User:  1000" in vm.debugfs(data, "stat /user/.ssh/authorized_keys")
    assert ".ssh" not in vm.debugfs(image, "ls -p /home/user")
    assert vm.debugfs(image, "fsck")
    assert vm.debugfs(data, "fsck")


def test_two_roots_are_not_guessed_between(helper: Path, make: Make, tmp_path: Path) -> None:
    """Two partitions with an fstab: an error names them, and ROOT_PARTITION decides."""
    image = make(size=64 * vm.MIB, disk=512 * vm.MIB)
    script = f"label: dos\nstart=2048, size={63 * 2048}, type=83\nstart={200 * 2048}, type=83\n"
    subprocess.run(["sfdisk", "-q", "--wipe=never", image], input=script.encode(), check=True)
    blocks = str((512 - 200) * vm.MIB // 4096 - 256)
    command = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-d", str(tmp_path / "tree"), "-E", f"offset={200 * vm.MIB}"]
    subprocess.run([*command, str(image), blocks], check=True)
    run = vm.customize(helper, vm.request(), [image])
    assert "partitions 1, 2 of the image may all be the root" in str(run.result.message)
    run = vm.customize(helper, vm.request(properties={"ROOT_PARTITION": "1"}), [image])
    assert run.result.ok, run.result.message
    assert run.result.facts["root_partition"] == "1"
    assert run.result.facts["grown_partition"] == "2"


def test_two_runs_give_two_identities(helper: Path, make: Make) -> None:
    seen = set()
    for _ in range(2):
        image = make()
        run = vm.customize(helper, vm.request(), [image])
        seen.add((vm.read_file(image, "etc/machine-id"), run.result.facts["host_key_ed25519"]))
    assert len({identity for identity, _ in seen}) == len({key for _, key in seen}) == 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda image: image.write_bytes(bytes(16 * vm.MIB)), "the image has no partition table"),
        (lambda image: _overwrite(image, vm.MIB, bytes(vm.MIB)), "no Linux root file system"),
        (lambda image: _overwrite(image, vm.MIB, b"LUKS\xba\xbe".ljust(vm.MIB, b"\0")), "is encrypted"),
    ],
)
def test_an_unusable_image_is_named(helper: Path, make: Make, spoil: Callable[[Path], None], reason: str) -> None:
    image = make()
    spoil(image)
    run = vm.customize(helper, vm.request(), [image])
    assert not run.result.ok
    assert reason in str(run.result.message)


def test_a_damaged_file_system_ends_the_run_and_nothing_else(helper: Path, make: Make) -> None:
    image = make()
    # The group descriptors and the first inode table.
    _overwrite(image, vm.MIB + 4096, b"\xa5" * vm.MIB)
    run = vm.customize(helper, vm.request(), [image])
    assert run.code == 0
    assert not run.result.ok
    assert run.result.task == "FilesystemResizeUnmounted"
    assert "is damaged" in str(run.result.message)


def test_a_dirty_journal_is_replayed(helper: Path, make: Make) -> None:
    """A clone of a running machine's disk: the file system says that it was not unmounted."""
    image = make()
    offset = f"{image}?offset={vm.MIB}"
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 0", offset], check=True, capture_output=True)
    run = vm.customize(helper, vm.request(), [image])
    assert run.result.ok, run.result.message
    assert vm.debugfs(image, "fsck")


def _overwrite(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def _hostile(tree: Path) -> None:
    """/etc/hostname, hosts and shadow lead out of the tree or to what is no file."""
    (tree / "etc/hostname").unlink()
    (tree / "etc/hostname").symlink_to("../../../../dev/vda")
    (tree / "etc/machine-id").unlink()
    (tree / "etc/machine-id").symlink_to("/proc/self/mem")
    (tree / "root/.ssh").symlink_to("/home/user")


def test_links_lead_nowhere_outside(helper: Path, make: Make) -> None:
    image = make(change=_hostile)
    run = vm.customize(helper, vm.request(), [image])
    assert run.result.ok, run.result.message
    assert vm.read_file(image, "etc/hostname") == "web1.example.org\n"
    # The link was followed inside the image only, as sshd itself would.
    assert vm.read_file(image, "home/user/authorized_keys").startswith("ssh-ed25519")
    assert vm.debugfs(image, "fsck")


def test_etc_that_leads_out(helper: Path, make: Make) -> None:
    def change(tree: Path) -> None:
        (tree / "etc").rename(tree / "other")
        (tree / "etc").symlink_to("/dev")

    run = vm.customize(helper, vm.request(), [make(change=change)])
    assert not run.result.ok
    assert "no root file system" in str(run.result.message)


def test_a_fifo_is_not_a_file(helper: Path, make: Make) -> None:
    def change(tree: Path) -> None:
        (tree / "etc/shadow").unlink()
        __import__("os").mkfifo(tree / "etc/shadow")

    run = vm.customize(helper, vm.request(), [make(change=change)])
    assert not run.result.ok
    assert run.result.task == "ChangePassword"
    assert "is a FIFO" in str(run.result.message)


def test_a_full_file_system_leaves_no_half_edited_credentials(helper: Path, make: Make) -> None:
    def change(tree: Path) -> None:
        (tree / "ballast").write_bytes(b"x" * (32 * vm.MIB))

    image = make(change=change, size=48 * vm.MIB, disk=48 * vm.MIB)
    run = vm.customize(helper, vm.request(), [image])
    shadow = vm.read_file(image, "etc/shadow")
    assert run.result.ok or shadow == vm.FILES["etc/shadow"][0]


def test_a_missing_disk_is_reported(helper: Path, make: Make) -> None:
    wanted = vm.request(disks=(protocol.Disk(index=0, serial="snf-disk-9"),))
    run = vm.customize(helper, wanted, [make()])
    assert not run.result.ok
    assert "snf-disk-9" in str(run.result.message)


def test_excluded_tasks_do_not_run(helper: Path, make: Make) -> None:
    image = make()
    run = vm.customize(helper, vm.request(properties={"EXCLUDE_ALL_TASKS": "yes"}), [image])
    assert run.result.ok
    assert [type(reply) for reply in run.replies] == [protocol.Hello, protocol.Result]


def test_a_saved_state_does_all_the_same(warm_helper: Path, make: Make) -> None:
    image = make()
    before = int(time.time())
    run = vm.customize(warm_helper, vm.request(), [image], is_warm=True)
    assert run.result.ok, run.result.message
    assert run.code == 0
    assert vm.debugfs(image, "fsck")
    assert vm.read_file(image, "etc/hostname") == "web1.example.org\n"
    assert_credentials(image)
    assert_host_keys(image, run.result)
    written = int(re.findall(r"ctime: 0x([0-9a-f]+)", vm.debugfs(image, "stat /etc/hostname"))[0], 16)
    assert before - 1 <= written <= time.time() + 1


def test_runs_of_one_state_share_no_random_numbers(warm_helper: Path, make: Make) -> None:
    seen = set()
    for _ in range(2):
        image = make()
        run = vm.customize(warm_helper, vm.request(), [image], is_warm=True)
        shadow = vm.read_file(image, "etc/shadow")
        seen |= {vm.read_file(image, "etc/machine-id"), run.result.facts["host_key_ed25519"], shadow}
        seen.add(run.result.facts["host_key_ecdsa"])
    assert len(seen) == 8


def test_a_state_of_another_machine_is_not_used(warm_helper: Path) -> None:
    manifest = builder.verify(warm_helper)
    other = [word.replace("512", "640") for word in vm.machine(warm_helper, manifest.arguments)]
    assert builder.open_state(warm_helper, manifest, other) is None


def test_a_tampered_helper_is_refused(helper: Path, tmp_path: Path) -> None:
    builder.build(tmp_path)
    _overwrite(tmp_path / "initrd", 100, b"\xff")
    with pytest.raises(builder.HelperDamagedError, match="digest differs"):
        builder.verify(tmp_path)


def test_the_same_packages_give_the_same_bytes(helper: Path, tmp_path: Path) -> None:
    assert builder.build(tmp_path) == builder.load(helper)

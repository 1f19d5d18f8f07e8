# SPDX-License-Identifier: BSD-2-Clause
"""Builds the helper VM's files from what the distribution installed on this node: kernel, initrd, manifest.json.

No network, no root file system of another distribution, no image: the newest kernel (the cloud flavour before others),
the node's own Python with the few modules that the guest side imports, e2fsprogs, ssh-keygen, their shared libraries,
and our `helper/`. The same packages give the same bytes. A dpkg trigger builds again when they change. Whoever starts
the VM calls `verify` first: a file that is not what was built is refused (threat V11).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ganeti_plugin import files, log
from ganeti_plugin.errors import CommandError, IntegrityError, StateError
from ganeti_plugin.run import run
from snf_image import cpio, kernel, warm
from snf_image.cpio import Entry

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
KERNEL = "kernel"
INITRD = "initrd"
STATE = "state"
LOCK = ".lock"

#: Seconds that a build or a run waits for a build.
LOCK_TIMEOUT = 180.0

PYTHON = Path("/usr/bin/python3")

#: Programs that the tasks run, and the libraries that they load by name at run time.
PROGRAMS = ("/usr/sbin/e2fsck", "/usr/sbin/resize2fs", "/usr/bin/ssh-keygen")
LIBRARIES = ("libcrypt.so.1",)

#: Where the helper keeps our code.
CODE = "/usr/lib/snf-image-helper"

#: The kernel's command line. Each word is there for the time it saves under emulation (measured: 1.9 s to 1.3 s for a
#: bare boot), or to end the VM at once when anything fails (panic=-1, with QEMU's -no-reboot).
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 8250.nr_uarts=1 tsc=reliable no_timer_check mitigations=off random.trust_cpu=on "
    "cryptomgr.notests nokaslr audit=0 apparmor=0 selinux=0 nowatchdog ipv6.disable=1"
)

#: QEMU's CPU model under emulation: the plainest one, with the instruction that seeds the kernel's random numbers.
EMULATED_CPU = "qemu64,+rdrand"

#: Prints the files of every module that the guest imports, those it imports late included.
PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import snf_image.helper.main, traceback
import encodings.ascii, encodings.latin_1, encodings.utf_8, encodings.utf_16_le
found = {}
for name, module in list(sys.modules.items()):
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    if origin not in (None, "built-in", "frozen"):
        found[name] = origin
import os
found["os"] = os.__file__
print(json.dumps({"modules": found, "version": sys.version.split()[0]}))
"""

#: Compiles files (stdin: JSON list of source and the path to record) to byte code as hexadecimal digits (stdout: JSON).
#: The header is PEP 552's: "valid by the source's hash", which nobody compares. A fresh interpreter with a fixed hash
#: seed, because byte code depends on what the process has interned before and on the order of sets.
COMPILER = """
import hashlib, importlib.util, json, marshal, sys
result = []
for source, path in json.load(sys.stdin):
    with open(source, "rb") as stream:
        data = stream.read()
    code = compile(data, path, "exec", dont_inherit=True, optimize=2)
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + hashlib.sha256(data).digest()[:8]
    result.append((header + marshal.dumps(code)).hex())
json.dump(result, sys.stdout)
"""


class BuildError(StateError):
    template = "the helper VM cannot be built: {message}"


class HelperMissingError(StateError):
    template = "the helper VM is not built: {path} is missing"
    hint = "run 'snf-image helper build'"


class HelperDamagedError(IntegrityError):
    template = "{path} is not the file that was built ({detail})"
    hint = "find out who changed it, then run 'snf-image helper build'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltFile:
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedState(BuiltFile):
    """The state of a VM that is up (warm.py), and the key of the only machine that may restore it."""

    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was built, from what, and how it is started: `arguments` is the kernel's command line."""

    kernel: BuiltFile
    initrd: BuiltFile
    kernel_release: str
    python_version: str
    arguments: str
    state: SavedState | None = None
    version: int = MANIFEST_VERSION

    def encoded(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n").encode()


# --- the initramfs ---------------------------------------------------------------------------------------------------


class Content:
    """The entries of the initramfs. Everything lives below /usr, as in the distribution."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        for name in ("bin", "sbin", "lib", "lib64"):
            self.entries[f"/{name}"] = cpio.link(f"/{name}", f"usr/{name}")
            self.entries[f"/usr/{name}"] = cpio.directory(f"/usr/{name}")
        for name in ("proc", "sys", "dev", "run", "target", "etc"):
            self.entries[f"/{name}"] = cpio.directory(f"/{name}")
        # Python wants random bytes before devtmpfs is mounted; a CPU without RDRAND leaves the kernel with none yet.
        self.entries["/dev/urandom"] = cpio.character_device("/dev/urandom", 1, 9)
        self.add("/etc/passwd", b"root:x:0:0:root:/:/bin/false\n")
        self.add("/etc/group", b"root:x:0:\n")

    def add(self, path: str, data: bytes, mode: int = 0o644) -> None:
        for name in ("bin", "sbin", "lib", "lib64"):
            if path.startswith(f"/{name}/"):
                path = f"/usr{path}"
        self.entries[path] = cpio.file(path, data, mode)

    def add_program(self, source: Path, path: str | None = None) -> None:
        """A program or library of the node with the libraries that it is linked with."""
        if not source.exists():
            raise BuildError(message=f"{source} is missing")
        self.add(path or str(source), source.read_bytes(), 0o755)
        for library in linked(source):
            if library not in self.entries and f"/usr{library}" not in self.entries:
                self.add(library, Path(library).read_bytes(), 0o755)


def linked(program: Path) -> list[str]:
    """The shared libraries of a program, found by the node's own dynamic linker."""
    found = []
    for line in run(["/usr/bin/ldd", program]).stdout.decode("utf-8", "replace").splitlines():
        words = line.split()
        path = words[2] if len(words) > 2 and words[1] == "=>" else words[0] if words else ""
        if path == "not":
            raise BuildError(message=f"a library of {program} is missing: {line.strip()}")
        if path.startswith("/"):
            found.append(path)
    return found


def library_path(name: str) -> Path:
    """Where the dynamic linker finds a library by name."""
    for line in run(["/sbin/ldconfig", "-p"]).stdout.decode("utf-8", "replace").splitlines():
        words = line.split()
        if words[:1] == [name] and "x86-64" in line:
            return Path(words[-1])
    raise BuildError(message=f"the library {name} is missing")


@dataclasses.dataclass(frozen=True)
class PythonModules:
    version: str
    sources: dict[str, str]


def python_modules(tree: Path) -> PythonModules:
    """The modules that the guest side imports, found by importing it with the node's Python."""
    done = run([PYTHON, "-E", "-s", "-S", "-B", "-c", PROBE, tree])
    answer = json.loads(done.stdout)
    return PythonModules(str(answer["version"]), {str(name): str(path) for name, path in answer["modules"].items()})


def add_python(content: Content, tree: Path) -> str:
    """Python, the part of its library that is used, and our code; returns Python's version."""
    modules = python_modules(tree)
    folder = "/usr/lib/python" + ".".join(modules.version.split(".")[:2])
    content.add_program(PYTHON, "/usr/bin/python3")
    content.entries[f"{folder}/lib-dynload"] = cpio.directory(f"{folder}/lib-dynload")
    places: dict[str, str] = {}
    for name, origin in sorted(modules.sources.items()):
        source = Path(origin)
        if source.suffix == ".so":
            content.add_program(source)
        elif name.split(".")[0] == "snf_image":
            places[origin] = f"{CODE}/{source.relative_to(tree)}"
        else:
            places[origin] = origin
    for path, code in compiled(places).items():
        content.add(path.removesuffix(".py") + ".pyc", code)
    return modules.version


def compiled(places: dict[str, str]) -> dict[str, bytes]:
    """Byte code by place, from sources: nothing is looked up or compiled in the VM, and no source is there."""
    order = json.dumps(list(places.items())).encode()
    done = run([PYTHON, "-s", "-S", "-B", "-c", COMPILER], stdin=order, env={"PYTHONHASHSEED": "0"})
    return {path: bytes.fromhex(code) for path, code in zip(places.values(), json.loads(done.stdout), strict=True)}


def add_modules(content: Content, chosen: kernel.Kernel) -> None:
    text = (chosen.modules / "modules.dep").read_text()
    index = []
    for purpose, paths in sorted(kernel.plan_modules(text, kernel.PURPOSES).items()):
        places = [f"/lib/modules/{kernel.module_name(path)}" for path in paths]
        for path, place in zip(paths, places, strict=True):
            content.add(place, kernel.module_data(chosen, path))
        index.append(" ".join([purpose, *places]))
    content.add("/lib/modules.index", ("\n".join(index) + "\n").encode())


def initramfs(chosen: kernel.Kernel, tree: Path) -> tuple[bytes, str]:
    """The archive and the version of the Python in it."""
    content = Content()
    version = add_python(content, tree)
    for program in PROGRAMS:
        content.add_program(Path(program))
    for library in LIBRARIES:
        content.add_program(library_path(library))
    add_modules(content, chosen)
    content.add("/init", (tree / "snf_image/helper/init").read_bytes(), 0o755)
    return cpio.archive(content.entries), version


# --- building and verifying ------------------------------------------------------------------------------------------


def _described(data: bytes) -> BuiltFile:
    return BuiltFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def build(directory: Path, machine: Callable[[str], Sequence[str]] | None = None) -> Manifest:
    """Build the helper into `directory`; a VM that is being started sees the old files or the new ones, never both.

    With `machine`, the state of a VM that is up is saved, too. It gives the words of the machine's command, without
    disks, for the kernel's arguments; kernel and initrd are those in `directory`. Where that fails, there is no state.
    """
    tree = Path(__file__).resolve().parent.parent
    chosen = kernel.best()
    image = kernel.bare_image(chosen.image.read_bytes())
    try:
        archive, python_version = initramfs(chosen, tree)
    except (CommandError, OSError) as error:
        raise BuildError(message=str(error)) from error
    manifest = Manifest(
        kernel=_described(image),
        initrd=_described(archive),
        kernel_release=chosen.release,
        python_version=python_version,
        arguments=KERNEL_ARGUMENTS,
    )
    directory.mkdir(parents=True, exist_ok=True)
    with files.locked(directory / LOCK, mode=0o644, timeout=LOCK_TIMEOUT):
        files.remove(directory / MANIFEST)
        files.remove(directory / STATE)
        files.write_atomically(directory / KERNEL, image)
        files.write_atomically(directory / INITRD, archive)
        if machine is not None:
            manifest = dataclasses.replace(manifest, state=_saved(directory, machine(manifest.arguments)))
        files.write_atomically(directory / MANIFEST, manifest.encoded())
    return manifest


def _saved(directory: Path, command: Sequence[str]) -> SavedState | None:
    """Save the state of the machine of `command`; None, and a warning, when QEMU cannot."""
    path = directory / STATE
    try:
        warm.save(command, path)
        path.chmod(0o600)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return SavedState(size=path.stat().st_size, sha256=digest, key=warm.key(command))
    except (StateError, OSError) as error:
        files.remove(path)
        log.warning("the helper VM will boot for each run, which takes longer: %s", error)
        return None


def load(directory: Path) -> Manifest:
    """The manifest as it was written, unverified."""
    path = directory / MANIFEST
    try:
        value = json.loads(files.read_bounded(path, 65536))
        if value["version"] != MANIFEST_VERSION:
            raise HelperDamagedError(path=path, detail="it is of another release")
        built = {name: BuiltFile(size=int(value[name]["size"]), sha256=str(value[name]["sha256"])) for name in _FILES}
        texts = {name: str(value[name]) for name in ("kernel_release", "python_version", "arguments")}
        state = SavedState(**value["state"]) if value["state"] else None
    except FileNotFoundError:
        raise HelperMissingError(path=path) from None
    except (ValueError, KeyError, TypeError):
        raise HelperDamagedError(path=path, detail="it is not a manifest") from None
    return Manifest(
        kernel=built[KERNEL],
        initrd=built[INITRD],
        kernel_release=texts["kernel_release"],
        python_version=texts["python_version"],
        arguments=texts["arguments"],
        state=state,
    )


_FILES = (KERNEL, INITRD)


def verify(directory: Path) -> Manifest:
    """Check owner, mode and digest of every file; returns the manifest. Waits while a build replaces them."""
    if not directory.is_dir():
        raise HelperMissingError(path=directory)
    with files.locked(directory / LOCK, shared=True, mode=0o644, timeout=LOCK_TIMEOUT):
        manifest = load(directory)
        for name, expected in ((KERNEL, manifest.kernel), (INITRD, manifest.initrd)):
            _verify_file(directory / name, expected)
    return manifest


def open_state(directory: Path, manifest: Manifest, command: Sequence[str]) -> int | None:
    """A descriptor of the saved state, verified, at its start; None when there is none for the machine of `command`.

    The caller closes it. Digest and restoring use the same open file.
    """
    if manifest.state is None or manifest.state.key != warm.key(command):
        return None
    return _open_verified(directory / STATE, manifest.state)


def _verify_file(path: Path, expected: BuiltFile) -> None:
    os.close(_open_verified(path, expected))


def _open_verified(path: Path, expected: BuiltFile) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HelperMissingError(path=path) from None
    except OSError as error:
        raise HelperDamagedError(path=path, detail=error.strerror) from None
    try:
        _check_file(path, descriptor, expected)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_file(path: Path, descriptor: int, expected: BuiltFile) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() and status.st_uid != 0:
        raise HelperDamagedError(path=path, detail=f"it belongs to user {status.st_uid}")
    if status.st_mode & 0o022:
        raise HelperDamagedError(path=path, detail="others may write to it")
    if status.st_size != expected.size:
        raise HelperDamagedError(path=path, detail=f"it has {status.st_size} bytes instead of {expected.size}")
    with open(descriptor, "rb", buffering=0, closefd=False) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != expected.sha256:
        raise HelperDamagedError(path=path, detail="its digest differs")
    os.lseek(descriptor, 0, os.SEEK_SET)

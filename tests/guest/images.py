# SPDX-License-Identifier: BSD-2-Clause
"""Guest images, made once and kept: `tests/guest/build-image [--small]` prints the path of an up-to-date one.

Both images come from one bootstrap. They are kept under /var/cache/snf-ganeti/guest and made again only when their
recipe (the sources of this folder) changes; a second call needs neither network nor time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ganeti_plugin import files, log
from ganeti_plugin.errors import InputError, StateError
from tests.guest import debian, small
from tests.guest.disk import copy_sparse
from tests.guest.isolation import isolated

CACHE = Path("/var/cache/snf-ganeti")

#: Names of images carry the number, as image names do.
RELEASES = {"bookworm": "12", "trixie": "13"}

#: Programs of the host and the packages that bring them (tests/host-packages.txt lists these, too).
PROGRAMS = {"mmdebstrap": "mmdebstrap", "extlinux": "extlinux", "mkfs.ext4": "e2fsprogs", "sfdisk": "fdisk",
            "modprobe": "kmod"}  # fmt: skip

#: Files that decide what the images contain.
RECIPE = ("debian.py", "disk.py", "small.py")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of an image; kept beside it."""

    recipe: str
    """Digest of the sources that made it."""
    release: str
    sha256: str
    size: int
    """Bytes, as the guest sees its disk."""
    kernel: str
    built: int
    """Unix time."""


def path_of(release: str, *, is_small: bool, cache: Path = CACHE) -> Path:
    """Where the image is kept."""
    name = f"debian-{RELEASES[release]}.raw"
    if is_small:
        name = "small.raw" if release == "bookworm" else f"small-{RELEASES[release]}.raw"
    return cache / "guest" / name


def recipe_of(release: str) -> str:
    """Digest of everything that decides what the images contain, package versions excepted."""
    digest = hashlib.sha256(release.encode())
    for name in RECIPE:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def manifest_of(image: Path) -> Manifest | None:
    """The manifest beside an image; None where image or manifest are missing or not ours."""
    try:
        fields = json.loads(image.with_suffix(".json").read_text())
        manifest = Manifest(**fields)
        return manifest if image.stat().st_size == manifest.size else None
    except (OSError, ValueError, TypeError):
        return None


def is_current(release: str, cache: Path = CACHE) -> bool:
    """Whether both images of the release are there and made by this recipe."""
    recipe = recipe_of(release)
    found = [manifest_of(path_of(release, is_small=kind, cache=cache)) for kind in (False, True)]
    return all(manifest is not None and manifest.recipe == recipe for manifest in found)


def ensure(release: str, *, force: bool = False, cache: Path = CACHE) -> None:
    """Have both images of the release; builds them if needed. One builder at a time, the others wait."""
    folder = cache / "guest"
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / "lock", timeout=1800):
        if is_current(release, cache) and not force:
            return
        _require_programs()
        for leftover in folder.glob("*.new"):
            leftover.unlink()
        scratch = folder / "build"
        scratch.mkdir(exist_ok=True)
        archives = cache / "apt" / "archives" if (cache / "apt").is_dir() else None
        if archives is not None:
            archives.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.callback(os.rmdir, scratch)
            isolated(
                "building the guest images",
                lambda inside: _build(inside, release, folder, archives),
                scratch=scratch,
                size="4g",
            )


def _require_programs() -> None:
    missing = sorted({package for name, package in PROGRAMS.items() if shutil.which(name) is None})
    if missing:
        raise StateError(message=f"missing here: {', '.join(missing)}", hint=f"apt-get install {' '.join(missing)}")


def _build(scratch: Path, release: str, folder: Path, archives: Path | None) -> None:
    started = time.monotonic()

    def say(what: str) -> None:
        log.info("guest image %s: %s (%.0f s)", release, what, time.monotonic() - started)

    tree = scratch / "tree"
    large, little = scratch / "large.raw", scratch / "little.raw"
    say("bootstrapping Debian")
    debian.bootstrap(tree, release, archives)
    say("making the small disk")
    small.build(little, tree, scratch)
    say("making the Debian disk")
    debian.build(large, tree, scratch)
    kernel = small.kernel_of(tree)
    say("storing")
    for kind, image in ((True, little), (False, large)):
        _store(image, path_of(release, is_small=kind, cache=folder.parent), release, kernel)
    say("done")


def _store(image: Path, target: Path, release: str, kernel: str) -> None:
    """Replace `target` by `image`; the manifest comes last, so a half-replaced image never counts as current."""
    fresh = target.with_name(f"{target.name}.new")
    copy_sparse(image, fresh)
    with fresh.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    manifest = Manifest(
        recipe=recipe_of(release), release=release, sha256=digest, size=image.stat().st_size, kernel=kernel,
        built=int(time.time()),
    )  # fmt: skip
    files.remove(target.with_suffix(".json"))
    os.replace(fresh, target)
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    files.write_atomically(target.with_suffix(".json"), text.encode())


def main() -> int:
    """Entry point of build-image."""
    parser = argparse.ArgumentParser(prog="build-image", description="make the guest images, print the path of one")
    parser.add_argument("--small", action="store_true", help="the small one (busybox) instead of the Debian")
    parser.add_argument("--release", choices=tuple(RELEASES), default="bookworm", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="build again, with current packages")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise InputError(message="build-image must run as root", hint="it makes file systems with foreign owners")
    ensure(options.release, force=options.force, cache=options.cache)
    print(path_of(options.release, is_small=options.small, cache=options.cache))
    return 0

# SPDX-License-Identifier: BSD-2-Clause
"""The command snf-image: build and check the helper VM by hand, and have it make an image of a machine's disk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ganeti_plugin import __version__, config
from ganeti_plugin.settings import Image
from snf_image import builder, customize, generalize


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    action = options.action
    status: int = action(config.load().image, options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="snf-image",
        description="The helper VM that customizes images, on this node.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong use.",
    )
    parser.add_argument("--version", action="version", version=f"snf-image {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    helper = commands.add_parser("helper", help="the helper VM's files")
    actions = helper.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build kernel and initrd from the packages installed on this node")
    build.set_defaults(action=_build)
    verify = actions.add_parser("verify", help="check that the files are those that were built")
    verify.set_defaults(action=_verify)
    _add_generalize(commands.add_parser("generalize", help="make an image of a machine's disk"))
    return parser


def _add_generalize(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(action=_generalize)
    parser.add_argument("disk", help="path of a block device or file, or URI of a local NBD server; used by nobody")
    parser.add_argument("--root-partition", type=int, metavar="NUMBER", help="partition of the root file system")
    parser.add_argument("--keep-logins", action="store_true", help="leave passwords and ssh keys as they are")
    parser.add_argument("--json", action="store_true", help="print what was found and removed as JSON")


def _build(settings: Image, _options: argparse.Namespace) -> int:
    manifest = customize.build(settings)
    print(_told(settings, manifest, "built"))
    return 0


def _verify(settings: Image, _options: argparse.Namespace) -> int:
    manifest = builder.verify(settings.helper_directory)
    print(_told(settings, manifest, "as built"))
    return 0


def _generalize(settings: Image, options: argparse.Namespace) -> int:
    found = generalize.generalize(settings, options.disk, options.root_partition, keep_logins=options.keep_logins)
    if options.json:
        print(json.dumps(dict(found), indent=2, sort_keys=True))
        return 0
    for name, value in sorted(found.items()):
        print(f"{name.replace('_', ' ')}: {value}")
    return 0


def _told(settings: Image, manifest: builder.Manifest, word: str) -> str:
    size = (manifest.kernel.size + manifest.initrd.size) / (1 << 20)
    return (
        f"{settings.helper_directory}: {word} (kernel {manifest.kernel_release}, Python {manifest.python_version}, "
        f"{size:.0f} MiB)"
    )

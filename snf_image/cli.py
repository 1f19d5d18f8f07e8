# SPDX-License-Identifier: BSD-2-Clause
"""The command snf-image: build and check the helper VM by hand, and try a customization on a disk without Ganeti."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ganeti_plugin import __version__, config
from ganeti_plugin.settings import Image
from snf_image import builder, customize


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
    return parser


def _build(settings: Image, _options: argparse.Namespace) -> int:
    manifest = customize.build(settings)
    print(_told(settings, manifest, "built"))
    return 0


def _verify(settings: Image, _options: argparse.Namespace) -> int:
    manifest = builder.verify(settings.helper_directory)
    print(_told(settings, manifest, "as built"))
    return 0


def _told(settings: Image, manifest: builder.Manifest, word: str) -> str:
    size = (manifest.kernel.size + manifest.initrd.size) / (1 << 20)
    return (
        f"{settings.helper_directory}: {word} (kernel {manifest.kernel_release}, Python {manifest.python_version}, "
        f"{size:.0f} MiB)"
    )

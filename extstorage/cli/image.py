# SPDX-License-Identifier: BSD-2-Clause
"""archipelago image: disks to be cloned by new instances."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from extstorage.cli.group import Group, Options, argument
from extstorage.cli.items import add_listing, add_removal, add_showing, everything, images
from extstorage.cli.output import Meter, print_json
from extstorage.cli.place import here, only_there, store_of
from extstorage.names import check_new_name
from ganeti_plugin.containers import Format, ImageRefusedError
from ganeti_plugin.errors import Error, StateError

if TYPE_CHECKING:
    import argparse

    from extstorage.cli.group import Commands
    from extstorage.servers import Site
    from extstorage.streams import Given


def add(commands: Commands) -> None:
    group = Group(commands, "image", "disks to be cloned by new instances")
    _add_import(group)
    _add_publish(group)
    add_listing(group, "image")
    add_showing(group, "image", "show", "show an image and its properties")
    _add_renaming(group)
    _add_sharing(group)
    add_removal(group, "image", "remove an image; its clones keep their data")


def _add_import(group: Group) -> None:
    parser = group.add("import", "make an image from a file, a URL or standard input", _import)
    parser.add_argument("name", help="the name of the image; an instance is cloned with origin=NAME")
    parser.add_argument("source", help="a disk image: a file, a URL (https, or http with --sha256), or - for stdin")
    parser.add_argument(
        *("--format", "-f"),
        default=Format.RAW.value,
        choices=[kind.value for kind in Format],
        help="what the file is; it is checked, never guessed (default: %(default)s)",
    )
    parser.add_argument(
        "--compression",
        default="",
        choices=["none", "gzip", "bzip2", "xz", "zstd"],
        help="how it is packed (default: what the ending .gz, .bz2, .xz or .zst says, else none)",
    )
    parser.add_argument("--sha256", default="", metavar="DIGEST", help="its SHA-256 as it comes, not unpacked")
    _add_properties(parser)


def _add_properties(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("--property", "-p"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a property of the image for snf-image, such as OSFAMILY=linux; may be repeated",
    )


def _add_publish(group: Group) -> None:
    parser = group.add("publish", "make a golden image of an instance's disk, also while it runs", _publish, json=True)
    argument(parser, "source", "INSTANCE or INSTANCE:DISK, or a volume, snapshot or image", everything)
    parser.add_argument("name", help="the name of the image; an instance is cloned with origin=NAME")
    _add_properties(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--keep-logins", action="store_true", help="leave passwords and ssh keys of accounts as they are")
    how.add_argument("--as-is", action="store_true", help="remove nothing, not even ssh host keys and the machine id")


def _publish(options: Options) -> None:
    from extstorage import publish
    from extstorage.images import parse_properties

    properties = parse_properties(options.property)
    wanted = publish.Wanted(options.source, options.name, properties, options.as_is, options.keep_logins)
    began = time.monotonic()
    with Meter(options.name, "hashed") as meter:
        made = publish.publish(only_there(options), wanted, functools.partial(_tell, options.name), meter)
    if options.json:
        print_json(made)
        return
    print(f"{options.name}: published in {time.monotonic() - began:.1f} s")


def _tell(name: str, text: str) -> None:
    """A step of long work, for who watches."""
    if sys.stderr.isatty():
        print(f"{name}: {text}", file=sys.stderr)


def _add_renaming(group: Group) -> None:
    parser = group.add("rename", "give an image another name; its clones are not affected", _rename)
    argument(parser, "name", "the image", images)
    parser.add_argument("new", help="its new name")


def _rename(options: Options) -> None:
    from extstorage import apply, gallery

    site = here(options)
    check_new_name(options.new, "the new name")
    with apply.using_store(site, store_of(site, options, options.name, "image")) as store:
        gallery.rename(store, options.name, options.new)
    print(f"{options.new}: renamed, was {options.name}")


def _add_sharing(group: Group) -> None:
    for name, text in (
        ("share", "let new disks be made of an image, which is the default"),
        ("unshare", "withdraw an image: it stays, and so do its clones, but no new disk can be made of it"),
    ):
        argument(group.add(name, text, functools.partial(_share, name == "share")), "name", "the image", images)


def _share(shared: bool, options: Options) -> None:
    from extstorage import apply, gallery

    site = here(options)
    with apply.using_store(site, store_of(site, options, options.name, "image")) as store:
        gallery.share(store, options.name, shared=shared)
    print(f"{options.name}: {'shared' if shared else 'withdrawn'}")


def _advice(given: Given, facts: Mapping[str, object]) -> str:
    """What may have been meant, where a source is not what it was declared to be."""
    from extstorage.streams import Compression

    match facts.get("found"):
        case []:
            return "if it is a raw image, leave out --format"
        case ["qcow2"]:
            return "if it is to be read as one, say --format qcow2"
        case [str() as name] if name in set(Compression):
            packed = given.packed() is not Compression.NONE
            return "if it was packed twice, unpack it once" if packed else f"if it is packed, say --compression {name}"
        case [str()]:
            return "convert it to raw or qcow2 first"
    return ""


def _tell_what_is_left(site: Site, name: str) -> None:
    from extstorage import apply
    from extstorage.images import PREFIX, is_interrupted

    with contextlib.suppress(Error, OSError), apply.using_store(site) as store:
        if is_interrupted(store, name):
            kept = f"{name}: what was read so far is kept for the next import of the same unchanged source to that name"
            print(f"{kept}; 'archipelago volume remove {PREFIX}{name}' gives it up", file=sys.stderr)


def _import(options: Options) -> None:
    from extstorage.images import import_image, parse_properties
    from extstorage.streams import Given, Terms
    from ganeti_plugin import config

    check_new_name(options.name, "the image name")
    properties = parse_properties(options.property)
    settings = config.load().archipelago
    given = Given(options.source, options.format, options.compression, options.sha256)
    terms = Terms(settings.image_limit << 30, settings.url_hosts, settings.url_networks)
    site = here(options)
    began = time.monotonic()
    try:
        with Meter(options.name, "copied") as meter:
            import_image(site, options.name, given, terms, properties, meter)
    except ImageRefusedError as error:
        raise ImageRefusedError(**{**error.facts, "hint": _advice(given, error.facts)}) from None
    except (StateError, KeyboardInterrupt):
        _tell_what_is_left(site, options.name)
        raise
    print(f"{options.name}: imported in {time.monotonic() - began:.1f} s")

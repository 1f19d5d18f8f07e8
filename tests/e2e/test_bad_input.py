# SPDX-License-Identifier: BSD-2-Clause
"""Bad input ends with one clear sentence and leaves nothing behind, driven through plain Ganeti commands."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.e2e.place import IMAGE, Traces, assert_nothing_left, sentence_about
from tests.place import done, tried

pytestmark = pytest.mark.timeout(900)

NAME = "bad1.test"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One wrong call of `gnt-instance add`; what is not given is right."""

    name: str
    says: str
    """What the sentence must mention (a regular expression)."""
    disk: str = f"size=1G,provider=archipelago,origin={IMAGE}"
    parameters: str = "img_id=null,img_format=diskdump"
    prepare: tuple[str, ...] = ()
    """A command to run in the node first."""


#: A folder of local images; the settings' default.
IMAGES = "/var/lib/snf-image"

CASES = (
    Case(
        name="unknown origin",
        disk="size=1G,provider=archipelago,origin=nosuchimage",
        says=r"nosuchimage",
    ),
    Case(
        name="disk smaller than the image",
        disk=f"size=16M,provider=archipelago,origin={IMAGE}",
        says=r"(?i)(small|larger).*",
    ),
    Case(name="missing img_id", parameters="img_format=diskdump", says=r"img_id"),
    Case(name="missing img_format", parameters="img_id=null", says=r"img_format"),
    Case(
        name="img_format that is none",
        parameters="img_id=null,img_format=tarball",
        says=r"img_format.*|tarball",
    ),
    Case(
        name="img_format that is not the file's",
        disk="size=1G,provider=archipelago",
        parameters="img_id=disk.raw,img_format=extdump",
        prepare=("cp", "/srv/cache/guest/small.raw", f"{IMAGES}/disk.raw"),
        says=r"extdump",
    ),
    Case(
        name="a qcow2 file that says it is raw",
        disk="size=1G,provider=archipelago",
        parameters="img_id=wrong.diskdump,img_format=diskdump",
        prepare=("qemu-img", "create", "-q", "-f", "qcow2", f"{IMAGES}/wrong.diskdump", "64M"),
        says=r"wrong\.diskdump|qcow2",
    ),
    Case(
        name="a local image that does not exist",
        disk="size=1G,provider=archipelago",
        parameters="img_id=nosuchfile.diskdump,img_format=diskdump",
        says=r"nosuchfile",
    ),
    Case(
        name="malformed JSON",
        parameters='img_id=null,img_format=diskdump,img_properties={"OSFAMILY":',
        says=r"(?i)img_properties",
    ),
    Case(
        name="unknown OS parameter",
        parameters="img_id=null,img_format=diskdump,img_colour=blue",
        says=r"img_colour",
    ),
    Case(
        name="unknown disk parameter",
        disk=f"size=1G,provider=archipelago,origin={IMAGE},colour=blue",
        says=r"(?i)colour",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_sentence_and_nothing_left(node1: str, case: Case) -> None:
    if case.prepare:
        done(*case.prepare)
    before = Traces.look(node1)
    outcome = tried(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext"),
        *("--disk", f"0:{case.disk}", "-o", "snf-image+default"),
        *("-O", case.parameters, "--net", "0:ip=pool,network=public"),
        *("-B", "minmem=128M,maxmem=128M,vcpus=1", "--no-name-check", "--no-ip-check", NAME),
    )
    assert outcome.status != 0, outcome.said
    try:
        sentence_about(outcome.said, case.says)
        assert_nothing_left(before)
    finally:
        tried("gnt-instance", "remove", "-f", "--ignore-failures", NAME)


def test_a_local_image_that_is_too_large_leaves_what_ganeti_keeps(node1: str) -> None:
    """Only `create` knows the disk's size, and Ganeti keeps an instance whose `create` failed: it can be removed."""
    done("cp", "/srv/cache/guest/small.raw", f"{IMAGES}/disk.raw")
    before = Traces.look(node1)
    outcome = tried(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext", "--disk", "0:size=16M,provider=archipelago"),
        *("-o", "snf-image+default", "-O", "img_id=disk.raw,img_format=diskdump"),
        *("--net", "0:ip=pool,network=public"),
        *("-B", "minmem=128M,maxmem=128M,vcpus=1", "--no-name-check", "--no-ip-check", NAME),
    )
    assert outcome.status != 0, outcome.said
    sentence_about(outcome.said, r"disk\.raw.*64 MiB|disk\.raw.*67108864")
    done("gnt-instance", "remove", "-f", NAME)
    assert_nothing_left(before)

# SPDX-License-Identifier: BSD-2-Clause
"""A running instance becomes a golden image, and clones of it boot as machines of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.guest import Guest, parameters
from tests.e2e.place import IMAGE_FILE
from tests.place import done, tried

pytestmark = pytest.mark.timeout(600)

BASE = "golden-base"
GOLDEN = "golden"
AUTHOR = "author.test"
CLONE = "clone.test"
PLACE = "/etc/lived-in"


def add(name: str, origin: str, osparams: str) -> Guest:
    done(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext"),
        *("--disk", f"0:size=128M,provider=archipelago,origin={origin}", "-o", "snf-image+default", "-O", osparams),
        *("--os-parameters-private", "img_passwd=geheim", "--net", "0:ip=pool,network=public"),
        *("-B", "minmem=128M,maxmem=128M,vcpus=1", "--no-name-check", "--no-ip-check"),
        *("--tags", "synnefo:network:0:unprotected", name),
    )
    return Guest(name)


@pytest.fixture(scope="module")
def author(node1: str) -> Iterator[Guest]:
    """A machine of an image that says itself whose password it is that a user gives."""
    done("archipelago", "image", "import", BASE, IMAGE_FILE, "-p", "OSFAMILY=linux", "-p", "USERS=nobody")
    yield add(AUTHOR, BASE, parameters())
    for name in (AUTHOR, CLONE):
        tried("gnt-instance", "remove", "-f", "--ignore-failures", "--shutdown-timeout=0", name)
    for name in (BASE, GOLDEN):
        tried("archipelago", "image", "remove", name)


def test_the_image_s_properties_count(author: Guest) -> None:
    shadow = dict(line.split(":")[:2] for line in author.ask("cat /etc/shadow").splitlines())
    assert shadow["nobody"].startswith("$6$")
    assert not shadow["root"].startswith("$")


def test_a_clone_of_a_golden_image_is_a_machine_of_its_own(author: Guest) -> None:
    """It has what was installed, and nothing by which one could take it for the other."""
    assert author.ask(f"echo here > {PLACE} && echo secret > /root/.ash_history && sync && echo done") == "done"
    made = json.loads(done("archipelago", "image", "publish", AUTHOR, GOLDEN, "--json"))
    assert made["source"] == author.volume()
    assert made["properties"] == {"OSFAMILY": "linux", "USERS": "nobody"}
    assert author.ask("hostname") == AUTHOR, "publishing disturbed the machine"
    clone = add(CLONE, GOLDEN, "img_id=null,img_format=diskdump")
    said = clone.ask(f"hostname; cat {PLACE}; cat /root/.ash_history; grep -c '^nobody:.6' /etc/shadow")
    assert said.split() == [CLONE, "here", "1"]
    identities = {guest.ask("cat /etc/machine-id") for guest in (author, clone)}
    assert len(identities) == 2
    assert all(len(identity) == 32 for identity in identities)


def test_a_withdrawn_image_makes_no_instance(author: Guest) -> None:
    done("archipelago", "image", "unshare", BASE)
    outcome = tried(
        *("gnt-instance", "add", "-n", "node1.testbed", "-t", "ext", "--no-start", "--no-nics"),
        *("--no-name-check", "--no-ip-check"),
        *("--disk", f"0:size=128M,provider=archipelago,origin={BASE}", "-o", "snf-image+default"),
        *("-O", "img_id=null,img_format=diskdump", "withdrawn.test"),
    )
    assert outcome.status != 0
    assert "is not shared" in outcome.said

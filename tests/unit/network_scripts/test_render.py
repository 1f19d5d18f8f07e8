# SPDX-License-Identifier: BSD-2-Clause
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from network_scripts import cleanup, render
from network_scripts.render import Element, Listing
from tests.unit.network_scripts.test_intent import routed

TEMPLATE = (Path(__file__).parents[3] / "templates" / "nft-base.nft").read_text(encoding="utf-8")


def names(elements: list[Element]) -> set[str]:
    return {f"{element.family} {element.name}" for element in elements}


def test_the_owner_is_created_first_so_that_leftovers_are_noticed() -> None:
    first, *others = render.up(routed(), 12, "eth1")
    assert first == {
        "create": {"element": {"family": "inet", "table": "snf_network", "name": "owner", "elem": [["tap3", 12]]}}
    }
    assert all("create" not in command for command in others)


def test_the_chain_of_a_tap_only_jumps() -> None:
    *_rest, chain, flush, rule = render.up(routed(), 12, "eth1")
    assert chain["add"]["chain"]["policy"] == "drop"  # type: ignore[index]
    assert list(flush) == ["flush"]
    assert rule["add"]["rule"]["expr"] == [{"jump": {"target": "guest"}}]  # type: ignore[index]


def test_every_element_belongs_to_a_set_of_the_base_ruleset() -> None:
    for element in [*render.elements(routed(), 1), *render.uplink_elements("eth1")]:
        table = re.search(rf"table {element.family} snf_network {{(.*?)\n}}", TEMPLATE, re.DOTALL)
        assert table is not None
        assert re.search(rf"\t(set|map) {element.name} {{", table[1]), element


def test_a_family_without_address_gets_no_element() -> None:
    four = names(list(render.elements(routed(NETWORK_SUBNET6=""), 1)))
    six = names(list(render.elements(routed(IP=""), 1)))
    assert not four & {"netdev addr6", "inet addr6", "netdev nd_target", "netdev nd_lladdr"}
    assert not six & {"netdev addr4", "inet addr4", "netdev dhcp_chaddr", "arp arp_source"}


def test_every_chain_of_the_base_ruleset_is_flushed_before_its_rules() -> None:
    declared, _marker, rules = TEMPLATE.partition("%%{flush}")
    flushed = re.findall(r"flush chain (\w+) snf_network (\w+)", render.base(TEMPLATE))
    assert (
        len(flushed)
        == len(re.findall(r"^\tchain ", declared, re.MULTILINE))
        == len(re.findall(r"^\tchain ", rules, re.MULTILINE))
    )


def test_every_drop_chain_has_its_counter() -> None:
    for reason in re.findall(r"chain drop_(\w+) { update", TEMPLATE):
        assert f"set drops_{reason} " in TEMPLATE
        assert f"goto drop_{reason}" in TEMPLATE


def document(family: str, *bodies: dict[str, Any]) -> bytes:
    items = [{"metainfo": {}}, *bodies]
    for item in items[1:]:
        next(iter(item.values()))["family"] = family
    return json.dumps({"nftables": items}).encode()


LISTED = (
    document(
        "netdev",
        {"set": {"name": "macs", "elem": [{"concat": [tap, "aa:00:00:00:00:01"]} for tap in ("tap0", "tap1")]}},
        {"set": {"name": "drops_mac", "elem": [{"elem": {"val": "tap0", "counter": {"packets": 7, "bytes": 9}}}]}},
        {"set": {"name": "routed", "elem": ["tap0"]}},
        {"set": {"name": "addr6"}},
        {"chain": {"name": "tap0"}},
        {"chain": {"name": "guest"}},
    ),
    document("inet", {"map": {"name": "owner", "elem": [["tap0", 7], ["tap1", 8]]}},
             {"map": {"name": "profiles", "elem": [["tap0", {"goto": {"target": "profile_limited"}}]]}}),
)  # fmt: skip


def test_a_listing_is_read() -> None:
    listing = render.decode(LISTED)
    assert listing.interfaces() == {"tap0", "tap1"}
    assert listing.chains == ("tap0",)
    assert listing.drops == {("drops_mac", "tap0"): 7}
    assert Element("inet", "owner", ("tap0",), 7) in listing.elements


def test_down_removes_all_of_one_interface_and_nothing_else() -> None:
    listing = render.decode(LISTED)
    commands = json.loads(render.encode(render.down(["tap0"], listing.elements, listing.chains)))["nftables"]
    assert "tap1" not in json.dumps(commands)
    removed = [c["delete"]["element"]["name"] for c in commands if "element" in c.get("delete", {})]
    assert sorted(removed) == ["drops_mac", "macs", "owner", "profiles", "routed"]
    assert [list(c) for c in commands[-2:]] == [["flush"], ["delete"]]


def test_stale_is_what_no_live_interface_owns() -> None:
    listing = render.decode(LISTED)
    assert cleanup.stale(listing, {"tap0": 7, "tap1": 8}) == []
    assert cleanup.stale(listing, {"tap0": None, "tap1": 8}) == ["tap0"]
    assert cleanup.stale(listing, {"tap0": 70, "tap1": 8}) == ["tap0"]
    assert cleanup.stale(Listing((), {}, ("tap5",)), {"tap5": 3}) == []


def test_numbers_too_large_for_json_are_text() -> None:
    targets = [element for element in render.elements(routed(), 1) if element.name == "nd_target"]
    assert {element.key[1] for element in targets} == {
        "0x20010db800010000a80000fffe123456",
        "0xfe80000000000000a80000fffe123456",
    }


def test_the_counters_are_those_of_the_base_ruleset() -> None:
    for family in ("netdev", "inet"):
        table = re.search(rf"table {family} snf_network {{(.*?)\n}}", TEMPLATE, re.DOTALL)
        assert table is not None
        assert set(re.findall(r"\tset (drops_\w+) ", table[1])) == {n for f, n in render.COUNTERS if f == family}


def test_replacing_takes_all_that_is_remembered_away() -> None:
    remembered = render.elements_of_nic(routed(), 5, "eth1")
    deleted = [c["delete"]["element"]["name"] for c in render.replace("tap3", remembered) if "delete" in c]  # type: ignore[index]
    assert deleted[: len(remembered)] == [element.name for element in remembered]
    assert render.replace("tap3", ()) == []

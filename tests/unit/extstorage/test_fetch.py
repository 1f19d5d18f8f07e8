# SPDX-License-Identifier: BSD-2-Clause
"""What may be fetched: schemes, hosts, and the addresses behind them."""

from __future__ import annotations

import socket

import pytest

from extstorage import fetch
from extstorage.fetch import (
    BadNetworkError,
    FetchError,
    HostNotAllowedError,
    Job,
    NotAllowedError,
    checked,
    is_permitted,
)
from ganeti_plugin.errors import Error

JOB = Job("", ["images.example.org", "*.example.net", "127.0.0.1", "mirror.local:8080"], [], False, 1 << 30)


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.org/a.raw?token=x",
        "https://IMAGES.example.org/",
        "https://images.example.org:443/",
        "https://a.b.example.net/x",
        "https://mirror.local:8080/x",
    ],
)
def test_what_is_listed(url: str) -> None:
    assert checked(url, JOB).scheme == "https"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/shadow", "http and https"),
        ("ftp://images.example.org/", "http and https"),
        ("https:///x", "malformed"),
        ("https://images.example.org/a b", "malformed"),
        ("https://images.example.org/a\r\nHost: x", "malformed"),
        ("https://images.example.org:99999/", "malformed"),
        ("https://[::1/", "malformed"),
        ("https://ann:secret@images.example.org/", "user name or password"),
        ("http://images.example.org/", "needs a digest"),
        ("https://elsewhere.example.org/", "not listed"),
        ("https://example.net/", "not listed"),
        ("https://evilexample.net/", "not listed"),
        ("https://images.example.org:8443/", "not listed"),
        ("https://mirror.local/", "not listed"),
        ("https://2130706433/", "not listed"),
    ],
)
def test_what_is_not(url: str, reason: str) -> None:
    with pytest.raises(NotAllowedError, match=reason) as caught:
        checked(url, JOB)
    assert "secret" not in str(caught.value)


def test_the_hint_says_what_to_list() -> None:
    with pytest.raises(HostNotAllowedError, match=r"add 'new\.example:81' to url_hosts"):
        checked("https://new.example:81/token", JOB)


def test_a_digest_makes_up_for_plain_http() -> None:
    assert checked("http://images.example.org/", JOB._replace(has_digest=True)).scheme == "http"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1::1", "ff02::1"),
        *("::7f00:1", "::10.1.2.3", "fec0::1", "64:ff9b:1::1", "4000::1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    """H50: however they are written."""
    assert not is_permitted(address, [])
    assert not is_permitted(address, ["10.99.0.0/16", "fd00:1::/64"])


@pytest.mark.parametrize("address", ["8.8.8.8", "2a00:1450:4001::1", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_permitted(address, [])


def test_listed_networks() -> None:
    assert is_permitted("10.1.2.3", ["10.1.0.0/16"])
    assert is_permitted("::ffff:10.1.2.3", ["10.1.0.0/16"])
    assert is_permitted("fd00:1::5", ["fd00:1::/64"])
    assert not is_permitted("10.2.2.3", ["10.1.0.0/16"])


def test_a_setting_that_is_no_network_is_named() -> None:
    with pytest.raises(BadNetworkError, match="10.1/99"):
        is_permitted("10.1.2.3", ["10.1/99"])


def test_a_name_that_leads_inside_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: what is checked is what is connected to, and nothing else is asked again."""
    asked: list[str] = []

    def answer(host: str, port: int, **_options: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(NotAllowedError, match="no public address"):
        fetch.connected("https://x", "images.example.org", 443, [])
    assert asked == ["images.example.org"]


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_arguments: object, **_options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(FetchError, match="not known") as caught:
        fetch.connected("https://x", "images.example.org", 443, [])
    assert isinstance(caught.value, Error)

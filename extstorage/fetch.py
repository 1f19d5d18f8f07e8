# SPDX-License-Identifier: BSD-2-Clause
"""Fetches one URL to its standard output: a program of its own, run as nobody, that believes no server.

Only http and https, only hosts that an administrator listed, only addresses that are public or listed: the address that
is connected to is the one that was checked, at every redirect again (threats H24, H50-H53). Plain http must be made up
for by a digest, which the reader of the output checks. What it needs to know comes as JSON on its standard input, for
a URL may hold a token; no message shows more of it than scheme and host.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from ganeti_plugin.errors import InputError, StateError

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5

#: Seconds: for a connection and one read, for the headers of one answer, for everything.
_PATIENCE = 30.0
_HEADERS = 60
TOTAL = 6 * 3600

#: Bytes for each second of waiting for the server, measured over `_WINDOW` seconds of it.
MINIMUM_RATE = 16 << 10
_WINDOW = 60.0

#: Bytes that are read at a time.
_PIECE = 1 << 16

_HEADER_LINES = {"Accept-Encoding": "identity", "User-Agent": "snf-archipelago"}
_PORTS = {"http": 80, "https": 443}

#: Where public IPv6 addresses are. Outside are some that Python calls global: those of sites (fec0::/10), and those
#: that stand for IPv4 addresses (::/96, 64:ff9b::/96).
_UNICAST = ipaddress.ip_network("2000::/3")

#: Addresses inside that stand for others, which a check of their own would not show: 6to4, Teredo.
_DISGUISES = tuple(ipaddress.ip_network(text) for text in ("2002::/16", "2001::/32"))


class NotAllowedError(InputError):
    template = "{where} may not be fetched: {reason}"


class HostNotAllowedError(NotAllowedError):
    template = "{where} may not be fetched: its host is not listed"
    hint = "add {host!r} to url_hosts in [archipelago] of the configuration"


class BadNetworkError(InputError):
    template = "the setting url_networks lists {text!r}, which is not a network"
    hint = "write ADDRESS/BITS, such as 10.1.0.0/16"


class FetchError(StateError):
    template = "{where} can't be fetched: {reason}"


class Job(NamedTuple):
    """What to fetch. `hosts` and `networks` are the settings url_hosts and url_networks."""

    url: str
    hosts: Sequence[str]
    networks: Sequence[str]
    #: Whether somebody compares what comes with a digest.
    has_digest: bool
    #: Bytes.
    limit: int
    seconds: int = TOTAL


def main() -> int:
    """The command `archipelago fetch`, which runs in its confinement; not for people."""
    job = Job(**json.load(sys.stdin))
    fetch(job, sys.stdout.fileno())
    return 0


def shown(url: str) -> str:
    """As much of a URL as may stand in a log."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}"[:200]
    except ValueError:
        return "the URL"


def checked(url: str, job: Job) -> SplitResult:
    """The parts of a URL that may be fetched."""
    where = shown(url)
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise NotAllowedError(where="the URL", reason="it is malformed") from None
    if parts.scheme not in _PORTS:
        raise NotAllowedError(where=where, reason="there are http and https")
    if not url.isascii() or not url.isprintable() or " " in url or not parts.hostname:
        raise NotAllowedError(where=where, reason="it is malformed")
    if parts.username is not None or parts.password is not None:
        raise NotAllowedError(where=where, reason="it carries a user name or password")
    if parts.scheme == "http" and not job.has_digest:
        raise NotAllowedError(where=where, reason="plain http needs a digest to compare with (--sha256)")
    host = parts.hostname if port == _PORTS[parts.scheme] else f"{parts.hostname}:{port}"
    if not any(_is_listed(host, each.lower()) for each in job.hosts):
        raise HostNotAllowedError(where=where, host=host)
    return parts


def _is_listed(host: str, entry: str) -> bool:
    return host == entry or (entry.startswith("*.") and host.endswith(entry[1:]))


def is_permitted(text: str, networks: Sequence[str]) -> bool:
    """Whether an address may be connected to: it is public, or in a network that is listed."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    if any(address in _network(network) for network in networks):
        return True
    if address.version == 6 and address not in _UNICAST:
        return False
    return address.is_global and not address.is_multicast and not any(address in one for one in _DISGUISES)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadNetworkError(text=text) from None


def connected(where: str, host: str, port: int, networks: Sequence[str]) -> socket.socket:
    """A connection to the first address of the host that may be and can be connected to."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError(where=where, reason=f"its host is not known ({error})") from None
    permitted = [one for one in found if is_permitted(str(one[4][0]), networks)]
    if not permitted:
        raise NotAllowedError(where=where, reason="its host has no public address, and none in url_networks")
    reason = ""
    for family, kind, protocol, _, address in permitted:
        link = socket.socket(family, kind, protocol)
        link.settimeout(_PATIENCE)
        try:
            link.connect(address)
        except OSError as error:
            link.close()
            reason = error.strerror or "no answer"
            continue
        return link
    raise FetchError(where=where, reason=reason)


class _Connection(http.client.HTTPConnection):
    """Over a socket that is connected already."""

    def __init__(self, parts: SplitResult, link: socket.socket) -> None:
        super().__init__(parts.hostname or "", parts.port or _PORTS[parts.scheme])
        self.sock = link


def answered(job: Job, context: ssl.SSLContext) -> tuple[str, http.client.HTTPResponse]:
    """Follow redirects to an answer that is good."""
    url = job.url
    for _ in range(MOST_REDIRECTS + 1):
        parts = checked(url, job)
        response = _ask(parts, job, context)
        if response.status not in REDIRECTS:
            if response.status != 200:
                response.close()
                raise FetchError(where=shown(url), reason=f"the server answers {response.status}")
            return shown(url), response
        url = urljoin(url, response.getheader("Location") or "")
        response.close()
    raise FetchError(where=shown(job.url), reason=f"it leads on more than {MOST_REDIRECTS} times")


def _ask(parts: SplitResult, job: Job, context: ssl.SSLContext) -> http.client.HTTPResponse:
    where, host = shown(parts.geturl()), parts.hostname or ""
    link = connected(where, host, parts.port or _PORTS[parts.scheme], job.networks)
    try:
        if parts.scheme == "https":
            link = context.wrap_socket(link, server_hostname=host)
        connection = _Connection(parts, link)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers=_HEADER_LINES)
        return connection.getresponse()
    except ssl.SSLError as error:
        raise FetchError(where=where, reason=f"TLS failed ({error.reason or error})") from None
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(where=where, reason=str(error) or type(error).__name__) from None
    finally:
        link.close()  # it stays open for the response, until that is closed


def fetch(job: Job, output: int, context: ssl.SSLContext | None = None) -> None:
    """Write the bytes at the URL to a descriptor. Raises when they are too many, too slow, or end too early."""
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(min(_HEADERS, job.seconds))
    where, response = answered(job, context or ssl.create_default_context())
    signal.alarm(job.seconds)
    with response:
        expected = response.length
        if expected is not None and expected > job.limit:
            raise NotAllowedError(where=where, reason=f"it has {expected} bytes, the limit is {job.limit}")
        if expected is None and not response.chunked and not job.has_digest:
            raise NotAllowedError(where=where, reason="its length is unknown, which needs a digest (--sha256)")
        count = _copy(where, response, output, job.limit)
    signal.alarm(0)
    if expected is not None and count != expected:
        raise FetchError(where=where, reason=f"it ends after {count} of {expected} bytes")


def _too_late(_number: int, _frame: object) -> None:
    raise FetchError(where="the URL", reason="it takes too long")


def _copy(where: str, response: http.client.HTTPResponse, output: int, limit: int) -> int:
    count, waited, window = 0, 0.0, 0
    while True:
        began = time.monotonic()
        try:
            piece = response.read1(_PIECE)
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(where=where, reason=str(error) or type(error).__name__) from None
        waited += time.monotonic() - began
        if not piece:
            return count
        count += len(piece)
        window += len(piece)
        if count > limit:
            raise NotAllowedError(where=where, reason=f"it has more than {limit} bytes")
        if waited >= _WINDOW:
            if window < MINIMUM_RATE * waited:
                raise FetchError(where=where, reason=f"it is slower than {MINIMUM_RATE >> 10} KiB/s")
            waited, window = 0.0, 0
        while piece:
            piece = piece[os.write(output, piece) :]

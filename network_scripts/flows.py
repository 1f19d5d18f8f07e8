# SPDX-License-Identifier: BSD-2-Clause
"""Tracked connections towards a guest: forgotten when its NIC comes up with a firewall profile, so that a conversation
which an earlier, more permissive profile let in does not go on as "established" (threat N73).

By netlink itself, filtered by the kernel: conntrack(8) is not on every node, and this is one question and few answers.
What the new profile permits is let in anew with the guest's next packet.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from ganeti_plugin import log

# linux/netlink.h, linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
_NETLINK_NETFILTER = 12
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_ERROR, _DONE = 2, 3
_CT_GET, _CT_DELETE = 0x101, 0x102
_TUPLE_ORIG, _ZONE, _FILTER = 1, 18, 25
_TUPLE_IP = 1
_IPV4_DESTINATION, _IPV6_DESTINATION = 2, 4
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_FILTER_DESTINATION = 0x2
_HEADER = struct.Struct("=IHHII")

#: Seconds; the kernel answers at once.
TIMEOUT = 5


def forget(address: IPv4Address | IPv6Address) -> int:
    """Forget the connections that were opened towards an address; how many there were."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as channel:
            channel.settimeout(TIMEOUT)
            channel.send(message(_CT_GET, _DUMP, family, question(address)))
            found = list(_answers(channel, address))
            for attributes in found:
                channel.send(message(_CT_DELETE, _ACK, family, attributes))
                channel.recv(65536)
    except OSError as error:
        log.warning("connections towards %s were not forgotten: %s", address, error)
        return 0
    return len(found)


def attribute(kind: int, body: bytes) -> bytes:
    """A netlink attribute, padded."""
    return struct.pack("=HH", len(body) + 4, kind) + body + bytes(-len(body) % 4)


def message(kind: int, flags: int, family: int, body: bytes) -> bytes:
    payload = bytes((family, 0, 0, 0)) + body
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags | _REQUEST, 1, 0) + payload


def question(address: IPv4Address | IPv6Address) -> bytes:
    """The attributes that ask for connections whose first packet went to the address.

    Of IPv6, all are asked for: there, the kernel's filter answers with those that do not match (Linux 5.8 to 6.18).
    """
    if isinstance(address, IPv6Address):
        return b""
    place = attribute(_TUPLE_IP | _NESTED, destination(address))
    flags = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _FILTER_DESTINATION))
    flags += attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", 0))
    return attribute(_TUPLE_ORIG | _NESTED, place) + attribute(_FILTER | _NESTED, flags)


def destination(address: IPv4Address | IPv6Address) -> bytes:
    kind = _IPV4_DESTINATION if isinstance(address, IPv4Address) else _IPV6_DESTINATION
    return attribute(kind, address.packed)


def attributes_of(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message, each with its header."""
    at = 0
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if length < 4:
            return
        yield kind & _TYPE_MASK, payload[at : at + length].ljust(-(-length // 4) * 4, b"\0")
        at += -(-length // 4) * 4


def _answers(channel: socket.socket, address: IPv4Address | IPv6Address) -> Iterator[bytes]:
    """The attributes that name each connection found towards the address."""
    wanted = destination(address)
    while True:
        data = channel.recv(1 << 20)
        if wanted not in data and not _ends(data):
            continue
        while len(data) >= _HEADER.size:
            length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = struct.unpack_from("=i", data, _HEADER.size)[0]
                raise OSError(-code, "the kernel refused the question")
            named = dict(attributes_of(data[_HEADER.size + 4 : length]))
            if wanted in named.get(_TUPLE_ORIG, b""):
                yield named[_TUPLE_ORIG] + named.get(_ZONE, b"")
            data = data[-(-length // 4) * 4 :]


def _ends(data: bytes) -> bool:
    """Whether the last message says that there is no more, or that something failed: both are short."""
    return len(data) < 64 or _HEADER.unpack_from(data, len(data) - 20)[1] in (_ERROR, _DONE)

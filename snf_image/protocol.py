# SPDX-License-Identifier: BSD-2-Clause
"""What the host and the helper VM say to each other, and nothing else.

One virtio-serial port carries frames both ways: four bytes of length (big-endian), then one JSON object in UTF-8. The
host sends a single `Request`. The guest sends `Hello`, then `TaskStart`, `TaskEnd` and `TaskWarning` as often as it
must, then exactly one `Result`, and powers off. Both sides decode with this file. The host's copy meets hostile bytes
(the guest's kernel has just mounted an untrusted file system), so every object has a closed set of keys, every text a
limit, and nothing here evaluates, resolves or opens anything (threats R4, V04).

This file travels into the VM: standard library only, and few modules of it, since each costs milliseconds under TCG.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

VERSION = 2

#: Name of the virtio-serial port that carries the frames.
PORT = "org.snf-ganeti.helper"

#: Serial number of a virtio-blk disk of the instance: this, then its index.
DISK_SERIAL = "snf-disk-"

#: Bytes of one frame's JSON.
FRAME_LIMIT = 1 << 20

#: Bytes and frames that a guest may send in one run; a host stops reading beyond.
REPLY_FRAME_LIMIT = 1 << 16
REPLY_COUNT_LIMIT = 1000

TEXT_LIMIT = 4096
LONG_TEXT_LIMIT = 768 * 1024
DISKS_LIMIT = 64
NICS_LIMIT = 64
LIST_LIMIT = 1024

#: What a helper can be asked for: to make an instance's system of an image, or an image of an instance's system.
CUSTOMIZE = "customize"
GENERALIZE = "generalize"
OPERATIONS = (CUSTOMIZE, GENERALIZE)

IMAGE_FORMATS = ("diskdump", "extdump", "ntfsdump")
NIC_CONFIGS = ("", "dhcp", "dhcpv6", "slaac", "slaac_dhcp", "dhcp+dhcpv6", "dhcp+slaac", "dhcp+slaac_dhcp")


class ProtocolError(Exception):
    """A frame is not what the protocol allows. The text names the fault, never the value: it may be a secret."""


# --- records -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disk:
    """A disk of the instance; the guest finds it by its serial number."""

    index: int
    serial: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nic:
    """A NIC of the instance, as Ganeti describes it; what Ganeti leaves unset is None."""

    index: int
    mac: str
    mode: str | None = None
    ip: str | None = None
    network_name: str | None = None
    subnet: str | None = None
    gateway: str | None = None
    subnet6: str | None = None
    gateway6: str | None = None
    tags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PersonalityFile:
    """A file to inject: `contents` is base64, `mode` a number (0o440 when the caller gave none)."""

    path: str
    contents: str = dataclasses.field(repr=False)
    owner: str = "root"
    group: str = "root"
    mode: int = 0o440


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Everything the helper is told. `entropy` and `nonce` are hexadecimal; `time` counts seconds since 1970.

    `properties` has upper-case names. `users` None means the family's default (`root`). `password` may be empty, which
    sets an empty password; None leaves the image's own.
    """

    nonce: str
    entropy: str = dataclasses.field(repr=False)
    time: int
    hostname: str
    disks: tuple[Disk, ...]
    operation: str = CUSTOMIZE
    nics: tuple[Nic, ...] = ()
    image_format: str = "diskdump"
    users: tuple[str, ...] | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    password_hash: str | None = dataclasses.field(default=None, repr=False)
    auth_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    personality: tuple[PersonalityFile, ...] = ()
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dhcp_tags: tuple[str, ...] = ("auto", "dhcp", "nfdhcpd")
    stateful_dhcpv6_tags: tuple[str, ...] = ("dhcpv6", "stateful_dhcpv6")
    stateless_dhcpv6_tags: tuple[str, ...] = ("nfdhcpd", "stateless_dhcpv6")
    default_nic_config: str = "dhcp"
    cloud_userdata: str | None = dataclasses.field(default=None, repr=False)
    os_product_key: str | None = dataclasses.field(default=None, repr=False)
    answer_file: str | None = dataclasses.field(default=None, repr=False)
    debug: bool = False
    version: int = VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hello:
    """The guest is up and waits for its request."""

    version: int = VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskStart:
    task: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEnd:
    task: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskWarning:
    """Something an administrator should read; `task` is None outside any task."""

    message: str
    task: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The end: when `ok`, everything was written, synced and unmounted. `facts` is what the guest found and did."""

    nonce: str
    ok: bool
    task: str | None = None
    message: str | None = None
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)


Reply = Hello | TaskStart | TaskEnd | TaskWarning | Result
Message = Request | Reply

# --- checks of values ----------------------------------------------------------------------------------------------

Check = Callable[[object, str], object]


def _text(limit: int = TEXT_LIMIT, *, minimum: int = 0) -> Check:
    def check(value: object, where: str) -> str:
        if not isinstance(value, str):
            raise ProtocolError(f"{where} is not a text")
        if not minimum <= len(value) <= limit:
            raise ProtocolError(f"{where} has {len(value)} characters, allowed are {minimum} to {limit}")
        if "\0" in value or not _is_unicode(value):
            raise ProtocolError(f"{where} holds a character that is not allowed")
        return value

    return check


def _is_unicode(value: str) -> bool:
    """JSON may escape halves of surrogate pairs, which are no characters."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _hexadecimal(minimum: int, maximum: int) -> Check:
    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or not minimum <= len(value) <= maximum:
            raise ProtocolError(f"{where} is not a text of {minimum} to {maximum} hexadecimal digits")
        if len(value) % 2 or not set(value) <= set("0123456789abcdef"):
            raise ProtocolError(f"{where} is not hexadecimal (whole bytes, lower case)")
        return value

    return check


def _name(value: object, where: str) -> str:
    """A task's or property's name: ASCII letters, digits, underscore."""
    if not isinstance(value, str) or not 1 <= len(value) <= 128:
        raise ProtocolError(f"{where} is not a name")
    if not value.isascii() or not value.replace("_", "a").isalnum():
        raise ProtocolError(f"{where} holds a character that is not allowed in a name")
    return value


def _integer(low: int, high: int) -> Check:
    def check(value: object, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ProtocolError(f"{where} is not a whole number from {low} to {high}")
        return value

    return check


def _boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"{where} is neither true nor false")
    return value


def _choice(allowed: Sequence[str]) -> Check:
    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ProtocolError(f"{where} is none of: {', '.join(repr(each) for each in allowed)}")
        return value

    return check


def _version(value: object, where: str) -> int:
    if type(value) is not int or value != VERSION:
        raise ProtocolError(f"{where} is not {VERSION}: the two sides are of different releases")
    return VERSION


def _optional(inner: Check) -> Check:
    def check(value: object, where: str) -> object:
        return None if value is None else inner(value, where)

    return check


def _sequence(inner: Check, limit: int = LIST_LIMIT) -> Check:
    def check(value: object, where: str) -> tuple[object, ...]:
        if not isinstance(value, list) or len(value) > limit:
            raise ProtocolError(f"{where} is not a list of at most {limit} elements")
        return tuple(inner(each, f"{where}[{number}]") for number, each in enumerate(value))

    return check


def _mapping(limit: int, text_limit: int) -> Check:
    check_text = _text(text_limit)

    def check(value: object, where: str) -> dict[str, str]:
        if not isinstance(value, dict) or len(value) > limit:
            raise ProtocolError(f"{where} is not an object of at most {limit} keys")
        pairs = ((_name(key, f"a key of {where}"), each) for key, each in value.items())
        return {key: str(check_text(each, f"{where}.{key}")) for key, each in pairs}

    return check


def _record(make: Callable[..., object], shape: Mapping[str, Check]) -> Check:
    def check(value: object, where: str) -> object:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where} is not an object")
        if unknown := sorted(value.keys() - shape.keys()):
            raise ProtocolError(f"{where} has the unknown key {unknown[0][:64]!r}")
        if missing := sorted(shape.keys() - value.keys()):
            raise ProtocolError(f"{where} lacks the key {missing[0]!r}")
        return make(**{key: inner(value[key], f"{where}.{key}") for key, inner in shape.items()})

    return check


_DISK: Mapping[str, Check] = {"index": _integer(0, DISKS_LIMIT - 1), "serial": _text(20, minimum=1)}

_NIC: Mapping[str, Check] = {
    "index": _integer(0, NICS_LIMIT - 1),
    "mac": _text(17, minimum=17),
    "mode": _optional(_text(32)),
    "ip": _optional(_text(64)),
    "network_name": _optional(_text(255)),
    "subnet": _optional(_text(64)),
    "gateway": _optional(_text(64)),
    "subnet6": _optional(_text(64)),
    "gateway6": _optional(_text(64)),
    "tags": _sequence(_text(255)),
}

_PERSONALITY_FILE: Mapping[str, Check] = {
    "path": _text(minimum=1),
    "contents": _text(LONG_TEXT_LIMIT),
    "owner": _text(64, minimum=1),
    "group": _text(64, minimum=1),
    "mode": _integer(0, 0o7777),
}

_REQUEST: Mapping[str, Check] = {
    "version": _version,
    "nonce": _hexadecimal(16, 128),
    "entropy": _hexadecimal(64, 2048),
    "time": _integer(0, 1 << 40),
    "hostname": _text(255, minimum=1),
    "disks": _sequence(_record(Disk, _DISK), DISKS_LIMIT),
    "operation": _choice(OPERATIONS),
    "nics": _sequence(_record(Nic, _NIC), NICS_LIMIT),
    "image_format": _choice(IMAGE_FORMATS),
    "users": _optional(_sequence(_text(255, minimum=1))),
    "password": _optional(_text()),
    "password_hash": _optional(_text(512)),
    "auth_keys": _sequence(_text(16384)),
    "personality": _sequence(_record(PersonalityFile, _PERSONALITY_FILE)),
    "properties": _mapping(LIST_LIMIT, LONG_TEXT_LIMIT),
    "dhcp_tags": _sequence(_text(255)),
    "stateful_dhcpv6_tags": _sequence(_text(255)),
    "stateless_dhcpv6_tags": _sequence(_text(255)),
    "default_nic_config": _choice(NIC_CONFIGS),
    "cloud_userdata": _optional(_text(LONG_TEXT_LIMIT)),
    "os_product_key": _optional(_text(64)),
    "answer_file": _optional(_text(LONG_TEXT_LIMIT)),
    "debug": _boolean,
}

_RESULT: Mapping[str, Check] = {
    "nonce": _hexadecimal(16, 128),
    "ok": _boolean,
    "task": _optional(_name),
    "message": _optional(_text()),
    "facts": _mapping(256, TEXT_LIMIT),
}

_check_request = _record(Request, _REQUEST)

_REPLIES: Mapping[str, Check] = {
    "hello": _record(Hello, {"version": _version}),
    "task-start": _record(TaskStart, {"task": _name}),
    "task-end": _record(TaskEnd, {"task": _name}),
    "warning": _record(TaskWarning, {"task": _optional(_name), "message": _text()}),
    "result": _record(Result, _RESULT),
}

_TYPES: Mapping[type, str] = {
    Request: "request",
    Hello: "hello",
    TaskStart: "task-start",
    TaskEnd: "task-end",
    TaskWarning: "warning",
    Result: "result",
}

# --- JSON and frames -----------------------------------------------------------------------------------------------


def _plain(value: object) -> object:
    """A record as what JSON can say."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def encode(message: Message) -> bytes:
    """The message as one frame. It is decoded again first, so that no side can send what the other must refuse."""
    plain = _plain(message)
    assert isinstance(plain, dict)
    data = json.dumps({"type": _TYPES[type(message)], **plain}, separators=(",", ":")).encode("ascii")
    limit = FRAME_LIMIT if isinstance(message, Request) else REPLY_FRAME_LIMIT
    if len(data) > limit:
        raise ProtocolError(f"the {_TYPES[type(message)]} has {len(data)} bytes, allowed are {limit}")
    if isinstance(message, Request):
        decode_request(data)
    else:
        decode_reply(data)
    return len(data).to_bytes(4, "big") + data


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("an object names a key twice")
    return found


def _refuse_number(_text: str) -> object:
    raise ProtocolError("a number is not a whole one")


def _parse_integer(text: str) -> int:
    if len(text) > 20:
        raise ProtocolError("a number has too many digits")
    return int(text)


def _load(data: bytes) -> tuple[str, dict[str, object]]:
    """The type and the other keys of a frame's object."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            parse_int=_parse_integer,
        )
    except (ValueError, RecursionError):
        raise ProtocolError("a frame is not JSON in UTF-8") from None
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ProtocolError("a frame is not an object with a type")
    return value.pop("type"), value


def decode_request(data: bytes) -> Request:
    """The request in a frame's JSON. Raises ProtocolError."""
    kind, value = _load(data)
    if kind != "request":
        raise ProtocolError("the frame is not a request")
    request = _check_request(value, "request")
    assert isinstance(request, Request)
    return request


def decode_reply(data: bytes) -> Reply:
    """What a guest says in a frame's JSON. Raises ProtocolError."""
    kind, value = _load(data)
    if kind not in _REPLIES:
        raise ProtocolError("the frame is none of the replies that exist")
    reply = _REPLIES[kind](value, kind)
    assert isinstance(reply, Hello | TaskStart | TaskEnd | TaskWarning | Result)
    return reply


class Frames:
    """Cuts a byte stream into frames, however the bytes arrive; never holds more than one frame's limit plus a read.

    `count` bounds the number of frames over the stream's life.
    """

    def __init__(self, *, limit: int = REPLY_FRAME_LIMIT, count: int = REPLY_COUNT_LIMIT) -> None:
        self._limit = limit
        self._left = count
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add what was read; yields the JSON of each frame that is complete now. Raises ProtocolError."""
        self._buffer += data
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if not 2 <= length <= self._limit:
                raise ProtocolError(f"a frame announces {length} bytes, allowed are 2 to {self._limit}")
            if len(self._buffer) < 4 + length:
                return
            if self._left <= 0:
                raise ProtocolError("there are too many frames")
            self._left -= 1
            frame = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            yield frame

    def is_empty(self) -> bool:
        """Whether no half of a frame is left: true at the end of a whole stream."""
        return not self._buffer

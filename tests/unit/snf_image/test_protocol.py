# SPDX-License-Identifier: BSD-2-Clause
"""The protocol refuses what it does not know, and loses nothing of what it knows."""

from __future__ import annotations

import dataclasses
import json

import pytest

from snf_image import protocol
from snf_image.protocol import Frames, ProtocolError

NONCE = "ab" * 16
REQUEST = protocol.Request(
    nonce=NONCE,
    entropy="cd" * 64,
    time=1_800_000_000,
    hostname="web1.example.org",
    disks=(protocol.Disk(index=0, serial="snf-disk-0"),),
    nics=(protocol.Nic(index=0, mac="aa:00:00:12:34:56", ip="198.51.100.7", tags=("dhcp",)),),
    users=("root", "user"),
    password='päss"word\n',
    auth_keys=("ssh-ed25519 AAAA",),
    personality=(protocol.PersonalityFile(path="/x", contents="eA=="),),
    properties={"OSFAMILY": "linux"},
)
REPLIES: list[protocol.Reply] = [
    protocol.Hello(),
    protocol.TaskStart(task="MountImage"),
    protocol.TaskEnd(task="MountImage"),
    protocol.TaskWarning(task=None, message="careful"),
    protocol.Result(nonce=NONCE, ok=True, facts={"root_partition": "1"}),
    protocol.Result(nonce=NONCE, ok=False, task="MountImage", message="no"),
]


def body(message: protocol.Message) -> bytes:
    frame = protocol.encode(message)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return frame[4:]


def changed(message: protocol.Message, **changes: object) -> bytes:
    value = json.loads(body(message))
    value.update(changes)
    return json.dumps({key: each for key, each in value.items() if each is not ...}).encode()


def test_a_request_comes_back_as_it_was() -> None:
    assert protocol.decode_request(body(REQUEST)) == REQUEST


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_comes_back_as_it_was(reply: protocol.Reply) -> None:
    assert protocol.decode_reply(body(reply)) == reply


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(protocol.Request)])
def test_a_missing_key_is_named(key: str) -> None:
    value = json.loads(body(REQUEST))
    del value[key]
    with pytest.raises(ProtocolError, match=key):
        protocol.decode_request(json.dumps(value).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"surplus": 1},
        {"version": protocol.VERSION + 1},
        {"version": True},
        {"nonce": "xyz"},
        {"nonce": NONCE.upper()},
        {"time": 1.5},
        {"time": -1},
        {"time": 10**30},
        {"hostname": ""},
        {"hostname": "a\0b"},
        {"hostname": "\ud800"},
        {"hostname": 7},
        {"disks": {}},
        {"disks": [{"index": 0}]},
        {"disks": [{"index": 0, "serial": "s", "path": "/dev/sda"}]},
        {"disks": [{"index": 0, "serial": "s"}] * 65},
        {"image_format": "vmdk"},
        {"properties": {"a b": "c"}},
        {"properties": {"A": 1}},
        {"debug": 1},
        {"type": "result"},
    ],
    ids=str,
)
def test_a_malformed_request_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(changed(REQUEST, **change))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"type":7}',
        b'{"type":"hello","version":1,"version":1}',
        b'{"type":"hello","version":NaN}',
        b'{"type":"hello","version":1e0}',
        b'{"type":"format-disk"}',
        b'{"type":"task-start","task":"../x"}',
        b'{"type":"task-start","task":""}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"type":"warning","task":null,"message":"' + b"x" * 5000 + b'"}',
    ],
    ids=lambda data: repr(data[:40]),
)
def test_a_malformed_reply_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_reply(data)


def test_an_error_never_quotes_the_password() -> None:
    secret = "hunter2" * 700
    with pytest.raises(ProtocolError) as caught:
        protocol.decode_request(changed(REQUEST, password=secret))
    assert "hunter2" not in str(caught.value)


def test_a_request_is_not_printed_with_its_secrets() -> None:
    text = repr(dataclasses.replace(REQUEST, password="hunter2", password_hash="$6$salt", auth_keys=("key",)))
    assert "hunter2" not in text
    assert "$6$salt" not in text
    assert REQUEST.entropy not in text


def test_encode_refuses_what_decode_would() -> None:
    with pytest.raises(ProtocolError):
        protocol.encode(dataclasses.replace(REQUEST, hostname=""))
    with pytest.raises(ProtocolError):
        protocol.encode(protocol.Result(nonce=NONCE, ok=True, facts={f"f{n}": "x" * 4000 for n in range(100)}))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_frames_arrive_in_any_pieces(step: int) -> None:
    stream = b"".join(protocol.encode(reply) for reply in REPLIES)
    frames = Frames()
    found: list[protocol.Reply] = []
    for start in range(0, len(stream), step):
        found += [protocol.decode_reply(frame) for frame in frames.feed(stream[start : start + step])]
    assert found == REPLIES
    assert frames.is_empty()


def test_half_a_frame_is_seen() -> None:
    frames = Frames()
    assert list(frames.feed(protocol.encode(REPLIES[0])[:-1])) == []
    assert not frames.is_empty()


@pytest.mark.parametrize("length", [0, 1, protocol.REPLY_FRAME_LIMIT + 1, 2**32 - 1])
def test_an_impossible_length_is_refused_at_once(length: int) -> None:
    with pytest.raises(ProtocolError):
        list(Frames().feed(length.to_bytes(4, "big")))


def test_too_many_frames_are_refused() -> None:
    frame = protocol.encode(protocol.Hello())
    with pytest.raises(ProtocolError):
        list(Frames(count=3).feed(frame * 4))

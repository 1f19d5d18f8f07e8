# SPDX-License-Identifier: BSD-2-Clause
"""The host's state machine against a guest that says anything in any order (threats R4, V04)."""

from __future__ import annotations

import json

import pytest

from snf_image import protocol
from snf_image.conversation import Conversation, HelperError, State, TaskFailedError, printable
from snf_image.protocol import Hello, Reply, Result, TaskEnd, TaskStart, TaskWarning

NONCE = "ab" * 16
HELLO, START, END = Hello(), TaskStart(task="MountImage"), TaskEnd(task="MountImage")
WARNING = TaskWarning(message="careful")
OK = Result(nonce=NONCE, ok=True, facts={"root": "1"})
FAILED = Result(nonce=NONCE, ok=False, task="MountImage", message="no\x1b[2J root")


def stream(*replies: Reply) -> bytes:
    return b"".join(protocol.encode(reply) for reply in replies)


def test_success() -> None:
    conversation = Conversation(NONCE)
    assert conversation.feed(stream(HELLO)) == [HELLO]
    assert conversation.state is State.WORKING
    for byte in stream(START, WARNING, END, OK):
        conversation.feed(bytes([byte]))
    assert conversation.outcome().facts == {"root": "1"}


def test_failure_is_the_guests_word_made_printable() -> None:
    conversation = Conversation(NONCE)
    conversation.feed(stream(HELLO, START, FAILED))
    with pytest.raises(TaskFailedError, match=r"MountImage: no\\x1b\[2J root"):
        conversation.outcome()


@pytest.mark.parametrize(
    "replies",
    [
        [OK],
        [START],
        [WARNING],
        [HELLO, HELLO],
        [HELLO, END],
        [HELLO, START, START],
        [HELLO, START, TaskEnd(task="Other")],
        [HELLO, START, OK],
        [HELLO, OK, OK],
        [HELLO, OK, WARNING],
        [HELLO, OK, FAILED],
        [HELLO, Result(nonce="cd" * 16, ok=True)],
        [HELLO, Result(nonce="cd" * 16, ok=False, message="x")],
    ],
)
def test_wrong_order_or_nonce(replies: list[Reply]) -> None:
    conversation = Conversation(NONCE)
    with pytest.raises(HelperError):
        conversation.feed(stream(*replies))


@pytest.mark.parametrize("replies", [[], [HELLO], [HELLO, START], [HELLO, START, END]])
def test_silence_is_no_success(replies: list[Reply]) -> None:
    conversation = Conversation(NONCE)
    conversation.feed(stream(*replies))
    with pytest.raises(HelperError, match="ended without a result"):
        conversation.outcome()


def test_half_a_frame_after_the_result() -> None:
    conversation = Conversation(NONCE)
    conversation.feed(stream(HELLO, OK) + b"\0\0")
    with pytest.raises(HelperError, match="after its result"):
        conversation.outcome()


def framed(value: object) -> bytes:
    data = json.dumps(value).encode()
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\0\0\0\x02{}",
        b"\0\0\0\x02\xff\xfe",
        framed({"type": "hello", "version": protocol.VERSION + 1}),
        framed({"type": "hello", "version": protocol.VERSION, "extra": 1}),
        framed({"type": "request"}),
        framed([]),
        framed({"type": "hello", "version": True}),
        b"\0\0\x10\0" + b"[" * 4096,
    ],
)
def test_malformed_frames(data: bytes) -> None:
    with pytest.raises(HelperError, match="breaks the protocol"):
        Conversation(NONCE).feed(data)


def test_too_many_frames() -> None:
    conversation = Conversation(NONCE)
    with pytest.raises(HelperError, match="too many"):
        conversation.feed(stream(HELLO) + stream(WARNING) * protocol.REPLY_COUNT_LIMIT)


def test_printable() -> None:
    """V03."""
    assert printable("a\nb\x1b[0m\u202eä") == "a\\x0ab\\x1b[0m\\u202e\\xe4"
    assert len(printable("x" * 10_000)) == 2000

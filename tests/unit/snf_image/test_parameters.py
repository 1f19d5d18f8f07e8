# SPDX-License-Identifier: BSD-2-Clause
"""OS parameters: what is accepted, and one clear sentence for everything else, which never quotes a secret."""

from __future__ import annotations

import base64
import json

import pytest

from ganeti_plugin.errors import Error, InputError
from snf_image.parameters import DECLARED, ParameterError, UnbuiltError, parse, takes_kept_properties

GOOD = {"img_id": "null", "img_format": "diskdump"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq me@here"


def test_the_least() -> None:
    parameters = parse(GOOD)
    assert (parameters.image, parameters.image_format, parameters.password, parameters.users) == (
        "null", "diskdump", None, None,
    )  # fmt: skip


def test_everything() -> None:
    files = [{"path": "/etc/motd", "contents": base64.b64encode(b"hi").decode(), "mode": 420}]
    parameters = parse(
        {
            **GOOD,
            "img_id": "local://debian-12.qcow2",
            "img_passwd": "",
            "auth_keys": f"# mine\n{KEY}\n\n{KEY}\n",
            "img_properties": json.dumps({"osfamily": "linux", "users": "root admin", "size": 12, "DO_SYNC": True}),
            "inst_properties": json.dumps({"USERS": "root", "NOTE": None}),
            "img_personality": json.dumps(files),
        }
    )
    assert parameters.image == "debian-12.qcow2"
    assert parameters.password == ""  # an empty password, not none
    assert parameters.auth_keys == (KEY, KEY)
    assert parameters.properties == {"OSFAMILY": "linux", "USERS": "root", "SIZE": "12", "DO_SYNC": "yes", "NOTE": ""}
    assert parameters.users == ("root",)
    assert (parameters.personality[0].mode, parameters.personality[0].owner) == (420, "root")


KEPT = {"USERS": "debian", "NOTE": "kept"}


def test_what_is_kept_beside_the_image_counts_when_nothing_is_given() -> None:
    parameters = parse({**GOOD, "inst_properties": '{"note": "mine"}'}, KEPT)
    assert parameters.properties == {"USERS": "debian", "NOTE": "mine"}
    assert parameters.users == ("debian",)


@pytest.mark.parametrize("text", ['{"OSFAMILY": "linux"}', "{}"])
def test_what_is_given_replaces_all_that_is_kept(text: str) -> None:
    assert parse({**GOOD, "img_properties": text}, KEPT).properties == json.loads(text)


def test_another_image_has_nothing_of_the_disk_s() -> None:
    given = {**GOOD, "img_id": "local.raw"}
    assert not takes_kept_properties(given)
    assert parse(given, KEPT).properties == {}


@pytest.mark.parametrize("bad", [{"A B": ""}, {"USERS": "root; reboot"}, {"OSFAMILY": "plan9"}, {"X": "a\0b"}])
def test_what_is_kept_is_checked_as_if_it_were_given(bad: dict[str, str]) -> None:
    with pytest.raises(ParameterError):
        parse(GOOD, bad)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("img_id", "", "missing"),
        ("img_format", "", "missing"),
        ("img_format", "qcow2", "not one of"),
        ("img_passwd", "a\nb", "one line"),
        ("img_passwd_hash", "a:b", "not a password hash"),
        ("auth_keys", "onlyoneword", "line 1 is not a public key"),
        ("img_properties", "{bad", "not JSON"),
        ("img_properties", "[]", "not a JSON object"),
        ("img_properties", "[" * 100_000, "JSON"),
        ("img_properties", '{"A": {"B": 1}}', "neither text"),
        ("img_properties", '{"A B": "1"}', "not the name of a property"),
        ("img_properties", '{"ROOT_PARTITION": "first"}', "ROOT_PARTITION"),
        ("img_properties", '{"USERS": "root;reboot"}', "USERS"),
        ("img_properties", '{"OSFAMILY": "plan9"}', "OSFAMILY"),
        ("img_properties", '{"PASSWD_HASHING_METHOD": "rot13"}', "PASSWD_HASHING_METHOD"),
        ("inst_properties", "nope", "not JSON"),
        ("img_personality", "{}", "not a JSON list"),
        ("img_personality", '["x"]', "element 1: it is not an object"),
        ("img_personality", '[{"path": "etc/x", "contents": ""}]', "absolute path"),
        ("img_personality", '[{"path": "/../x", "contents": ""}]', "absolute path"),
        ("img_personality", '[{"path": "/x", "contents": "%"}]', "base64"),
        ("img_personality", '[{"path": "/x", "contents": "", "mode": 4096}]', "mode"),
        ("img_personality", '[{"path": "/x", "contents": "", "acl": 1}]', "unknown key 'acl'"),
        ("foo", "1", "no such parameter"),
    ],
)
def test_refused_in_one_sentence(name: str, value: str, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason) as caught:
        parse({**GOOD, name: value})
    assert str(caught.value).startswith(f"parameter {name}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    "value",
    [
        'json:{"driver":"file"}', "nbd:unix:/x", "-f", "a:b", "a,b", "a\nb", "a\0b", "..", "../x", "/etc/shadow",
        "local:///etc/shadow", "local://../x", "file://a/b", ".hidden", "x y", "ä", "null ", "NULL/",
    ],
)  # fmt: skip
def test_image_names_are_names(value: str) -> None:
    """H13, H52."""
    with pytest.raises(InputError):
        parse({**GOOD, "img_id": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config_url", "http://x/"),
        ("os_product_key", "AAAAA-AAAAA-AAAAA-AAAAA-AAAAA"),
        ("os_answer_file", "http://x/"),
        ("cloud_userdata", "eA=="),
        ("img_id", "http://x/y"),
        ("img_id", "pithos://a/c/o"),
        ("img_id", "pithosmap://m/1"),
        ("img_format", "extdump"),
        ("img_format", "ntfsdump"),
        ("img_properties", '{"CLOUD_INIT": true}'),
        ("img_properties", '{"cloud_init": "sure"}'),
        ("img_properties", '{"CUSTOM_TASK": "eA=="}'),
        ("img_properties", '{"SWAP": "2:512"}'),
        ("img_properties", '{"NM_NETWORKING": 1}'),
        ("img_properties", '{"OSFAMILY": "windows"}'),
    ],
)
def test_unbuilt_is_said_and_not_ignored(name: str, value: str) -> None:
    with pytest.raises(UnbuiltError, match="not supported by this release"):
        parse({**GOOD, name: value})


def test_unset_flags_are_no_reason_to_refuse() -> None:
    assert (
        parse({**GOOD, "img_properties": '{"CLOUD_INIT": "no", "SWAP": "", "OS": "debian"}'}).properties["OS"]
        == "debian"
    )


def test_password_excludes_hash() -> None:
    with pytest.raises(ParameterError, match="excludes"):
        parse({**GOOD, "img_passwd": "geheim", "img_passwd_hash": "$6$x"})


@pytest.mark.parametrize("name", ["img_passwd", "img_passwd_hash", "auth_keys", "img_personality"])
def test_secrets_are_never_quoted(name: str) -> None:
    """V09."""
    for value in ("geheim", "geheim\ngeheim", "geheim:\0"):
        try:
            text = repr(parse({**GOOD, name: value}))
        except Error as error:
            text = str(error)
        assert "geheim" not in text


def test_declared_names_are_the_contract() -> None:
    assert list(DECLARED) == [
        "img_id", "img_format", "img_passwd", "img_passwd_hash", "auth_keys", "img_properties", "inst_properties",
        "img_personality", "os_product_key", "os_answer_file", "config_url", "cloud_userdata",
    ]  # fmt: skip

# SPDX-License-Identifier: BSD-2-Clause
"""The OS parameters of snf-image: names and meaning as in the original, checked before anything is touched.

Each parameter is declared once; parameters.list of the OS definition is made of the same table (a test compares them).
What this release does not do is refused with a sentence: a creation that silently ignores a parameter would hand out a
machine that is not what was asked for. Values may be secrets, so no message quotes one.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ganeti_plugin.errors import InputError
from ganeti_plugin.log import warning
from snf_image.protocol import PersonalityFile

#: Declared in parameters.list, in this order.
DECLARED: Mapping[str, str] = MappingProxyType(
    {
        "img_id": "the image: null (the disk is filled already), or a file of the image directory (NAME, local://NAME)",
        "img_format": "what the image is: diskdump (a whole disk, raw, or qcow2 when the name ends in .qcow2)",
        "img_passwd": "password of the accounts USERS, in clear text; give it as a private or secret parameter",
        "img_passwd_hash": "the same as a ready hash; excludes img_passwd",
        "auth_keys": "lines for authorized_keys of the accounts USERS",
        "img_properties": "properties of the image, a JSON object",
        "inst_properties": "properties of the instance, a JSON object; they override img_properties",
        "img_personality": "files to put into the image, a JSON list",
        "os_product_key": "product key of Windows (not in this release)",
        "os_answer_file": "URL of an answer file of Windows (not in this release)",
        "config_url": "URL of a JSON object of further parameters (not in this release)",
        "cloud_userdata": "user data for cloud-init, in base64 (not in this release)",
    }
)

FORMATS = ("diskdump", "extdump", "ntfsdump")

#: Properties that ask for something that this release does not do, when they are set (for booleans: to yes).
_UNBUILT_TEXT = ("CUSTOM_TASK", "SWAP")
_UNBUILT_FLAGS = (
    "ALLOW_MOUNTED_TASK_OVERWRITING",
    "CLOUD_INIT",
    "NM_NETWORKING",
    "OFFLINE_NTFSRESIZE",
    "OFFLINE_NTFSRESIZE_NOCHECK",
)
_HASHING_METHODS = ("md5", "sha1", "blowfish", "sha256", "sha512")
_NO = ("", "no", "false", "off", "0", "unset")


class ParameterError(InputError):
    """A parameter is missing, malformed, or contradicts another; `name` is its name."""

    template = "parameter {name}: {reason}"


class UnbuiltError(InputError):
    """What is asked for exists in the contract but not in this release."""

    template = "{what} is not supported by this release of snf-image"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of one call, checked."""

    #: "null", or the name of a local image (img_id, without local://).
    image: str
    image_format: str
    #: None leaves the image's password; the empty text sets an empty one.
    password: str | None = field(default=None, repr=False)
    password_hash: str | None = field(default=None, repr=False)
    auth_keys: tuple[str, ...] = field(default=(), repr=False)
    #: Names in upper case; img_properties overridden by inst_properties.
    properties: Mapping[str, str] = field(default_factory=dict)
    personality: tuple[PersonalityFile, ...] = field(default=(), repr=False)

    @property
    def users(self) -> tuple[str, ...] | None:
        """The accounts that get password and keys; None means the default of the OS family."""
        return tuple(self.properties.get("USERS", "").split()) or None


def takes_kept_properties(given: Mapping[str, str]) -> bool:
    """Whether the properties that are kept beside the image count: of a clone, and when the user gives none."""
    return given.get("img_id") == "null" and not given.get("img_properties")


def parse(given: Mapping[str, str], kept: Mapping[str, str] = MappingProxyType({})) -> Parameters:
    """Check the OS parameters of a call (lower-case names). Raises ParameterError or UnbuiltError.

    `kept` stands in for img_properties: it is what the image brings along.
    """
    if takes_kept_properties(given) and kept:
        given = {**given, "img_properties": json.dumps(dict(kept))}
    _refuse_unknown(given)
    _refuse_unbuilt(given)
    password, password_hash = _passwords(given)
    image_format = _image_format(given)
    return Parameters(
        image=_image(given),
        image_format=image_format,
        password=password,
        password_hash=password_hash,
        auth_keys=_keys(given),
        properties=_properties(given),
        personality=_personality(given),
    )


def _refuse_unknown(given: Mapping[str, str]) -> None:
    for name in sorted(given.keys() - DECLARED.keys()):
        raise ParameterError(name=name[:64], reason=f"there is no such parameter; there are {', '.join(DECLARED)}")


def _refuse_unbuilt(given: Mapping[str, str]) -> None:
    for name in ("config_url", "os_product_key", "os_answer_file", "cloud_userdata"):
        if given.get(name):
            raise UnbuiltError(what=f"the parameter {name}")


def _required(given: Mapping[str, str], name: str) -> str:
    value = given.get(name, "")
    if not value:
        raise ParameterError(name=name, reason="it is required and is missing")
    return value


def _image(given: Mapping[str, str]) -> str:
    """null or a plain file name. Everything that a tool might read as more than a name is refused (H13, H52)."""
    value = _required(given, "img_id")
    if value == "null":
        return value
    if (scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", value)) and scheme[1] not in ("local", "file"):
        raise UnbuiltError(what=f"the source {scheme[1]}:// of img_id")
    name = value[scheme.end() :] if scheme else value
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+@-]{0,254}", name):
        raise ParameterError(
            name="img_id",
            reason="it is neither null nor the name of a file of the image directory (letters, digits, and . _ + @ -)",
        )
    return name


def _image_format(given: Mapping[str, str]) -> str:
    value = _required(given, "img_format")
    if value not in FORMATS:
        raise ParameterError(name="img_format", reason=f"it is not one of {', '.join(FORMATS)}")
    if value != "diskdump":
        raise UnbuiltError(what=f"the image format {value}")
    return value


def _passwords(given: Mapping[str, str]) -> tuple[str | None, str | None]:
    password, password_hash = given.get("img_passwd"), given.get("img_passwd_hash") or None
    if password is not None and password_hash is not None:
        raise ParameterError(name="img_passwd_hash", reason="it excludes img_passwd: give one of them")
    if password is not None and (len(password) > 1024 or re.search(r"[\0\r\n]", password)):
        raise ParameterError(name="img_passwd", reason="it is longer than 1024 characters or has more than one line")
    if password_hash is not None and not re.fullmatch(r"[!-9;-~]{1,511}", password_hash):
        raise ParameterError(name="img_passwd_hash", reason="it is not a password hash (one word without colons)")
    return password, password_hash


def _keys(given: Mapping[str, str]) -> tuple[str, ...]:
    if "auth_keys" not in given:
        return ()
    lines = [line.strip() for line in given["auth_keys"].splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        warning("the parameter auth_keys is empty and is ignored")
    for number, key in enumerate(keys, 1):
        if not key.isprintable() or len(key) > 16384 or len(key.split()) < 2:
            raise ParameterError(name="auth_keys", reason=f"line {number} is not a public key as in authorized_keys(5)")
    return keys


def _json(given: Mapping[str, str], name: str) -> object:
    """The value of a parameter that is JSON; None when it is not given."""
    text = given.get(name, "")
    if not text:
        return None
    try:
        return json.loads(text)
    except RecursionError:
        raise ParameterError(name=name, reason="its JSON is nested too deeply") from None
    except ValueError as error:
        place = f"line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else "a number"
        raise ParameterError(name=name, reason=f"it is not JSON ({place})") from None


def _properties(given: Mapping[str, str]) -> Mapping[str, str]:
    merged: dict[str, str] = {}
    for name in ("img_properties", "inst_properties"):
        value = _json(given, name)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ParameterError(name=name, reason="it is not a JSON object")
        for key, each in value.items():
            merged[_property_name(name, key)] = _property_text(name, key, each)
    _check_properties(merged)
    return MappingProxyType(merged)


def _property_name(parameter: str, key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]{1,128}", key, re.ASCII):
        raise ParameterError(name=parameter, reason=f"{key[:64]!r} is not the name of a property")
    return key.upper()


def _property_text(parameter: str, key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise ParameterError(name=parameter, reason=f"the property {key} is neither text, number nor boolean")
    if "\0" in str(value):
        raise ParameterError(name=parameter, reason=f"the property {key} holds a NUL")
    return str(value)


def _check_properties(properties: Mapping[str, str]) -> None:
    for name, check in _PROPERTY_CHECKS.items():
        value = properties.get(name, "").strip()
        if value:
            check(name, value)
    for name in _UNBUILT_TEXT:
        if properties.get(name, "").strip():
            raise UnbuiltError(what=f"the property {name}")
    for name in _UNBUILT_FLAGS:
        if properties.get(name, "").strip().lower() not in _NO:
            raise UnbuiltError(what=f"the property {name}")


def _check_family(_name: str, value: str) -> None:
    families = ("linux", "windows", "windows-legacy", "freebsd", "netbsd", "openbsd")
    if value.lower() not in families:
        raise ParameterError(name="img_properties", reason=f"OSFAMILY is not one of {', '.join(families)}")
    if value.lower() != "linux":
        raise UnbuiltError(what=f"the OS family {value.lower()}")


def _check_number(name: str, value: str) -> None:
    if not re.fullmatch(r"[1-9][0-9]{0,2}", value, re.ASCII):
        raise ParameterError(name="img_properties", reason=f"{name} is not the number of a partition")


def _check_method(name: str, value: str) -> None:
    if value.lower() not in _HASHING_METHODS:
        raise ParameterError(name="img_properties", reason=f"{name} is not one of {', '.join(_HASHING_METHODS)}")


def _check_users(name: str, value: str) -> None:
    for user in value.split():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?", user, re.ASCII):
            raise ParameterError(name="img_properties", reason=f"{name} holds something that is no account's name")


_PROPERTY_CHECKS: Mapping[str, Callable[[str, str], None]] = {
    "OSFAMILY": _check_family,
    "ROOT_PARTITION": _check_number,
    "PASSWD_HASHING_METHOD": _check_method,
    "USERS": _check_users,
}


def _personality(given: Mapping[str, str]) -> tuple[PersonalityFile, ...]:
    value = _json(given, "img_personality")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ParameterError(name="img_personality", reason="it is not a JSON list")
    return tuple(_personality_file(number, each) for number, each in enumerate(value, 1))


def _personality_file(number: int, value: object) -> PersonalityFile:
    def refuse(reason: str) -> ParameterError:
        return ParameterError(name="img_personality", reason=f"element {number}: {reason}")

    if not isinstance(value, dict):
        raise refuse("it is not an object")
    if unknown := sorted(value.keys() - {"path", "contents", "owner", "group", "mode"}):
        raise refuse(f"it has the unknown key {unknown[0][:64]!r}")
    path, contents = value.get("path"), value.get("contents")
    owner, group, mode = value.get("owner", "root"), value.get("group", "root"), value.get("mode", 0o440)
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise refuse("path is not an absolute path")
    if not isinstance(contents, str) or not _is_base64(contents):
        raise refuse("contents is not base64")
    if not isinstance(owner, str) or not isinstance(group, str) or not owner or not group:
        raise refuse("owner or group is not a name")
    if not isinstance(mode, int) or isinstance(mode, bool) or not 0 <= mode <= 0o7777:
        raise refuse("mode is not a number from 0 to 4095 (written in decimal)")
    return PersonalityFile(path=path, contents=contents, owner=owner, group=group, mode=mode)


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True

# SPDX-License-Identifier: BSD-2-Clause
"""ChangePassword: the users' password, and who may log in with a key.

The password is hashed in this process; nothing secret is ever an argument of a program. Files are edited line by line
and tolerantly, as an image's author may have left them (threat H38).
"""

from __future__ import annotations

import os

from snf_image.helper import accounts, ssh_config, syscalls
from snf_image.helper.accounts import Account
from snf_image.helper.errors import TaskError
from snf_image.helper.task import Context, Task

#: crypt(3)'s prefixes of the methods that PASSWD_HASHING_METHOD may name, and the length of their salts.
METHODS = {"sha512": ("$6$", 16), "sha256": ("$5$", 16), "md5": ("$1$", 8), "blowfish": ("$2b$12$", 22)}
DEFAULT_METHOD = "sha512"

_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def salt(length: int) -> str:
    text = "".join(_ALPHABET[byte & 63] for byte in os.urandom(length))
    # bcrypt's last character carries two bits only; "." is valid for all.
    return text[:-1] + "." if length == METHODS["blowfish"][1] else text


def hashed(password: str, method: str | None) -> str:
    """The password's hash for shadow. An empty password is an empty field: anyone may enter."""
    if password == "":
        return ""
    name = (method or DEFAULT_METHOD).strip().lower()
    if name not in METHODS:
        raise TaskError(f"PASSWD_HASHING_METHOD must be one of {', '.join(METHODS)} for a Linux image")
    prefix, length = METHODS[name]
    return syscalls.crypt(password.encode("utf-8"), (prefix + salt(length)).encode("ascii"))


def checked_hash(value: str) -> str:
    if any(character in value for character in ":\n\r\0"):
        raise TaskError("the password hash holds a character that would break the shadow file")
    return value


def checked_keys(lines: tuple[str, ...]) -> list[str]:
    """The keys, one a line, without control characters."""
    keys = [key.strip() for line in lines for key in line.splitlines() if key.strip()]
    for key in keys:
        if not key.isprintable():
            raise TaskError("an authorized key holds a control character")
    return keys


def applies(context: Context) -> bool:
    request = context.request
    return request.password is not None or request.password_hash is not None or bool(request.auth_keys)


def run(context: Context) -> None:
    request, tree = context.request, context.tree
    users = list(request.users or context.properties.words("USERS") or ["root"])
    known = accounts.parse(tree.read_text("etc/passwd") or "")
    missing = [name for name in users if name not in known]
    if missing:
        raise TaskError(f"the image has no user {missing[0][:64]!r}")
    if request.password is not None or request.password_hash is not None:
        set_password(context, users)
    keys = checked_keys(request.auth_keys)
    for name in users if keys else []:
        add_keys(context, known[name], keys)


def set_password(context: Context, users: list[str]) -> None:
    request, tree = context.request, context.tree
    if request.password is not None:
        field = hashed(request.password, context.properties.text("PASSWD_HASHING_METHOD"))
    else:
        field = checked_hash(request.password_hash or "")
    shadow = tree.read_text("etc/shadow")
    if shadow is None:
        raise TaskError("the image has no /etc/shadow")
    today = request.time // 86400
    for name in users:
        shadow = accounts.with_password(shadow, name, field, today)
    passwd = tree.read_text("etc/passwd") or ""
    shadowed = accounts.with_shadowed(passwd, users)
    tree.write_text("etc/shadow", shadow)
    if shadowed != passwd:
        tree.write_text("etc/passwd", shadowed)
    context.facts["password_set_for"] = " ".join(users)[:1000]


def add_keys(context: Context, account: Account, keys: list[str]) -> None:
    tree = context.tree
    path = ssh_config.authorized_keys_path(ssh_config.read(tree), account)
    if path is None:
        context.warn(f"the image's sshd takes no authorized keys from files; none was added for {account.name[:64]}")
        return
    directory = path.rpartition("/")[0]
    made = tree.make_directories(directory, 0o700, account.uid, account.gid)
    if made and account.name != "root" and not directory.startswith(account.home.strip("/")):
        context.warn(f"the folder /{directory} for authorized keys was missing and was made")
    old = tree.read_text(path) or ""
    lines = old.split("\n")
    own = [line for line in lines if line.strip() and not line.startswith("#")]
    if own:
        context.warn(f"the image brings {len(own)} authorized keys of its own for {account.name[:64]}; they stay")
    fresh = [key for key in keys if key not in lines]
    text = old + ("\n" if old and not old.endswith("\n") else "") + "".join(key + "\n" for key in fresh)
    tree.write_text(path, text, mode=0o600, uid=account.uid, gid=account.gid)
    context.facts["keys_added"] = str(len(fresh))


TASK = Task(
    name="ChangePassword",
    run=run,
    applies=applies,
    after=("MountImage",),
    before=("UmountImage",),
    needs_mount=True,
)

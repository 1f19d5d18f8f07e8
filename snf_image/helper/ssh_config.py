# SPDX-License-Identifier: BSD-2-Clause
"""What an image's sshd_config says about keys. Read as data: nothing in it is evaluated or expanded by a shell."""

from __future__ import annotations

from snf_image.helper.accounts import Account
from snf_image.helper.errors import TaskError
from snf_image.helper.tree import Tree

MAIN = "etc/ssh/sshd_config"
DROP_INS = "etc/ssh/sshd_config.d"
DEFAULT_AUTHORIZED_KEYS = ".ssh/authorized_keys"

Settings = list[tuple[str, list[str]]]


def parse(text: str) -> Settings:
    """Lower-case keyword and values of each global line; what follows a Match line is conditional and not read."""
    found: Settings = []
    for line in text.splitlines():
        words = line.replace("=", " ", 1).split() if "#" not in line[:1] else []
        if not words or words[0].startswith("#"):
            continue
        if words[0].lower() == "match":
            break
        found.append((words[0].lower(), [word.strip('"') for word in words[1:]]))
    return found


def read(tree: Tree) -> Settings:
    """The settings of the image's sshd; drop-ins first, since sshd takes the first value it meets."""
    settings: Settings = []
    for name in tree.names(DROP_INS):
        if name.endswith(".conf"):
            settings += parse(tree.read_text(f"{DROP_INS}/{name}") or "")
    return settings + parse(tree.read_text(MAIN) or "")


def authorized_keys_path(settings: Settings, account: Account) -> str | None:
    """Where sshd looks first for a user's keys, relative to the tree; None when it looks nowhere."""
    values = next((values for name, values in settings if name == "authorizedkeysfile" and values), None)
    pattern = values[0] if values else DEFAULT_AUTHORIZED_KEYS
    if pattern.lower() == "none":
        return None
    path = expand(pattern, account)
    if not path.startswith("/"):
        path = f"{account.home}/{path}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise TaskError("the image's sshd_config or passwd names an impossible file for authorized keys")
    return "/".join(parts)


def expand(pattern: str, account: Account) -> str:
    """sshd's tokens: %h home, %u name, %U number, %% a percent sign."""
    values = {"h": account.home, "u": account.name, "U": str(account.uid), "%": "%"}
    result, rest = "", pattern
    while rest:
        before, percent, rest = rest.partition("%")
        result += before
        if percent:
            if rest[:1] not in values:
                raise TaskError(f"the image's sshd_config has an unknown token in AuthorizedKeysFile: {pattern[:80]!r}")
            result += values[rest[0]]
            rest = rest[1:]
    return result


def host_key_paths(settings: Settings) -> list[str]:
    """The host keys that the configuration names."""
    return [values[0] for name, values in settings if name == "hostkey" and values]

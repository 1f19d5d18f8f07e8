# SPDX-License-Identifier: BSD-2-Clause
"""The shape of the tree, compared with the rules in docs/architecture.md, so that the picture cannot rot."""

from __future__ import annotations

import ast
import importlib
import os
import re
import string
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ganeti_plugin.errors import Error

TREE = Path(__file__).parents[1]
EXECUTABLES: Mapping[str, str] = {
    "ganeti-os": "snf_image",
    "ganeti-extstorage": "extstorage",
    "ganeti-hook": "hooks",
    "ganeti-ifup": "network_scripts",
    "ganeti-ifdown": "network_scripts",
    "snf-network": "network_scripts",
    "snf-ganeti": "ganeti_plugin",
    "snf-image": "snf_image",
    "archipelago": "extstorage",
    "archipelago-actions": "extstorage",
    "archipelago-watch": "extstorage",
}
FOLDERS = ("ganeti_plugin", "extstorage", "snf_image", "network_scripts", "os_providers", "hooks")

#: What the modules of each part may import of ours. The longest matching prefix counts.
LAYERS: Mapping[str, tuple[str, ...]] = {
    "ganeti_plugin": ("ganeti_plugin",),
    "snf_image.helper": ("snf_image.helper", "snf_image.protocol"),
    "snf_image.protocol": (),
    "extstorage": ("extstorage", "ganeti_plugin"),
    "network_scripts": ("network_scripts", "ganeti_plugin"),
    "snf_image": ("snf_image", "ganeti_plugin"),
    "os_providers": ("os_providers", "snf_image", "ganeti_plugin"),
    "hooks": ("hooks", "network_scripts", "extstorage", "ganeti_plugin"),
}

#: Modules that are neither Python's nor ours, and the one file that may import each.
THIRD_PARTY: Mapping[str, str] = {
    "argcomplete": "extstorage/cli/completion.py",
    "nbd": "extstorage/nbd_reader.py",
    "nbdkit": "extstorage/nbdkit_plugin.py",
    "rados": "extstorage/rados_pool.py",
}

#: Calls that start or become a program, by module. (Types, such as subprocess.Popen in an annotation, are no calls.)
STARTS = {
    "subprocess": "run Popen call check_call check_output getoutput getstatusoutput",
    "multiprocessing": "Process Pool",
    "pty": "spawn fork",
    "asyncio": "create_subprocess_exec create_subprocess_shell",
    "os": "system popen fork forkpty posix_spawn posix_spawnp execv execve execvp execvpe execl execle execlp execlpe "
    "spawnv spawnve spawnl spawnlp startfile",
}
MAY_START: Mapping[str, str] = {
    "ganeti_plugin/run.py": "the one place that starts programs",
    "extstorage/fork_server.py": "forks, to become what Ganeti has already started",
    "snf_image/launcher.py": "a program of its own: in the sandbox of the helper VM, where ganeti_plugin is not",
}

#: The guest's own world: it travels into the helper VM, where ganeti_plugin is not.
GUEST = "snf_image/helper/"

MAY_READ_ENVIRONMENT = ("ganeti_plugin/contract/", "ganeti_plugin/entry.py")


def sources() -> list[Path]:
    """Every Python file of the product: folders and executables, without tests."""
    found = [path for folder in FOLDERS for path in sorted((TREE / folder).rglob("*.py"))]
    return [*found, *(TREE / name for name in EXECUTABLES if (TREE / name).exists())]


def shown(path: Path) -> str:
    return str(path.relative_to(TREE))


def module_of(path: Path) -> str:
    parts = path.relative_to(TREE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


MODULES = {module_of(path): path for path in sources() if path.suffix == ".py"}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, str]]:
    """(module, name) of each import; the name is empty for `import module`."""
    tree = tree_of(path)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def target_of(module: str, name: str) -> str:
    """The module that an import reaches: `from a import b` may mean the module a.b."""
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


def is_under(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_imports_look_down_only(path: Path) -> None:
    executable = EXECUTABLES.get(path.name) if path.parent == TREE else None
    module = module_of(path)
    if executable:
        allowed: tuple[str, ...] = ("ganeti_plugin.entry", executable)
    else:
        allowed = LAYERS[max((prefix for prefix in LAYERS if is_under(module, (prefix,))), key=len)]
    for imported, name in imports(path):
        reached = target_of(imported, name)
        first = reached.split(".")[0]
        if first in FOLDERS or first == "tests":
            assert is_under(reached, allowed), f"{shown(path)} imports {reached}; allowed: {allowed}"
        elif first in THIRD_PARTY:
            assert shown(path) == THIRD_PARTY[first], f"{first} belongs into {THIRD_PARTY[first]}"
        else:
            assert first in sys.stdlib_module_names, f"{shown(path)} imports {first}"


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_internal_names_stay_internal(path: Path) -> None:
    own = module_of(path).rsplit(".", 1)[0]
    for module, name in imports(path):
        if module.split(".")[0] in FOLDERS and not is_under(module, (own,)):
            assert name.startswith("__") or not name.startswith("_"), f"{shown(path)} imports {module}.{name}"


def test_every_module_of_the_store_is_in_the_newcomers_list() -> None:
    """docs/architecture.md names each once, and none that is gone."""
    text = (TREE / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.split("## The modules of extstorage\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    modules = {path.name for path in (TREE / "extstorage").glob("*.py")} - {"__init__.py"}
    introduced = {"errors.py", "identity.py"}
    assert sorted([*re.findall(r"`(\w+\.py)`", "\n".join(table)), *introduced]) == sorted(modules)


def test_no_import_cycles() -> None:
    """Nor by imports that wait for their function to be called: a reader can always begin at the bottom."""
    arrows = {
        module: {target_of(*pair) for pair in imports(path)} & set(MODULES) - {module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join([*trail, module])}"
        if module not in done:
            for following in sorted(arrows[module]):
                walk(following, (*trail, module))
            done.add(module)

    for module in sorted(arrows):
        walk(module, ())
    assert len(done) == len(MODULES) > 10


def starting_calls(path: Path) -> Iterator[str]:
    for module, name in imports(path):
        if name and name in STARTS.get(module, "").split():
            yield f"{shown(path)}: from {module} import {name}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if node.func.attr in STARTS.get(module, "").split():
                yield f"{shown(path)}:{node.lineno}: {module}.{node.func.attr}"


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_one_module_starts_programs(path: Path) -> None:
    found = list(starting_calls(path))
    if shown(path) in MAY_START:
        assert found, f"{shown(path)} starts nothing: take it off the list"
    elif not shown(path).startswith(GUEST):
        assert found == []


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_the_environment_is_read_in_the_contract_modules_only(path: Path) -> None:
    readers = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
    ]
    assert not readers or shown(path).startswith((*MAY_READ_ENVIRONMENT, GUEST)), f"{shown(path)}:{readers}"


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_nothing_below_the_entry_exits(path: Path) -> None:
    exits = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr == "exit" and getattr(node.value, "id", "") == "sys"
    ]
    is_program = path.name in EXECUTABLES or shown(path) == "snf_image/launcher.py" or shown(path).startswith(GUEST)
    assert not exits or is_program, f"{shown(path)}:{exits}"


@pytest.mark.parametrize("name", EXECUTABLES)
def test_an_executable_is_a_name_and_not_a_program(name: str) -> None:
    path = TREE / name
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/python3 -Es\n")
    assert os.access(path, os.X_OK)
    assert not [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.If | ast.For)]
    assert re.search(r'^(sys\.exit\(guarded\("[a-z-]+", [a-z_]+\)\)|run\(\))$', text, re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in sources() if path.suffix == ".py"], ids=shown)
def test_a_module_opens_with_licence_and_reason(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: BSD-2-Clause\n")
    assert ast.get_docstring(tree_of(path)), f"{shown(path)} does not say why it exists"


# What Ganeti sees: the lists are those of ganeti-os-interface(7) and ganeti-extstorage-interface(7).

PROVIDER_ACTIONS = {"create", "attach", "detach", "remove", "grow", "setinfo", "verify", "snapshot", "open", "close"}
OS_SCRIPTS = {"create", "import", "export", "rename", "verify"}
OS_FILES = {"ganeti_api_version", "parameters.list", "variants.list"}
FACES = (
    ("extstorage/archipelago", "ganeti-extstorage", PROVIDER_ACTIONS, {"parameters.list"}),
    ("os_providers/snf-image", "ganeti-os", OS_SCRIPTS, OS_FILES),
)


@pytest.mark.parametrize(("folder", "executable", "scripts", "files"), FACES)
def test_a_folder_that_ganeti_sees_is_complete(
    folder: str, executable: str, scripts: set[str], files: set[str]
) -> None:
    names = {path.name for path in (TREE / folder).iterdir()}
    assert names == scripts | files
    for name in scripts:
        path = TREE / folder / name
        assert path.is_symlink(), path
        assert path.resolve() == TREE / executable, path
        assert not Path(os.readlink(path)).is_absolute(), path
        assert os.access(path, os.X_OK), path


@pytest.mark.parametrize(
    ("folder", "module", "table"),
    [
        ("extstorage/archipelago", "extstorage.plan", "PARAMETERS"),
        ("os_providers/snf-image", "snf_image.parameters", "DECLARED"),
    ],
)
def test_a_parameter_list_says_what_is_declared(folder: str, module: str, table: str) -> None:
    """Lines of a name and a description; a blank line, or one without description, breaks `gnt-os diagnose`."""
    declared: Mapping[str, str] = getattr(importlib.import_module(module), table)
    text = (TREE / folder / "parameters.list").read_text(encoding="utf-8")
    assert text == "".join(f"{name} {description}\n" for name, description in declared.items())
    assert declared


SKIPPING = ("skip", "skipif", "xfail", "importorskip")


@pytest.mark.parametrize("path", sorted(path for path in (TREE / "tests").rglob("*.py")), ids=shown)
def test_skips_stand_in_one_file(path: Path) -> None:
    found = [
        f"{shown(path)}:{node.lineno}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in SKIPPING and ast.unparse(node.value).startswith("pytest")
    ]
    assert not found or shown(path) == "tests/skips.py", found


def error_classes() -> dict[str, set[str]]:
    """By class name, the facts that its sentence and hint need."""
    for module, path in MODULES.items():
        if any(isinstance(node, ast.ClassDef) and node.name.endswith("Error") for node in tree_of(path).body):
            importlib.import_module(module)
    found: dict[str, set[str]] = {}
    waiting = [Error]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        fields = {field for text in (kind.template, kind.hint) for _, field, _, _ in string.Formatter().parse(text)}
        found[kind.__name__] = {field.split(".")[0] for field in fields if field}
    return found


ERRORS = error_classes()


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_every_error_gets_the_facts_that_its_sentence_needs(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            given = {keyword.arg for keyword in node.keywords}
            missing = ERRORS[node.func.id] - {name for name in given if name}
            assert not missing or None in given, f"{shown(path)}:{node.lineno}: {node.func.id} lacks {missing}"


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_what_is_raised_is_ours(path: Path) -> None:
    """ValueError and LookupError are for functions whose callers turn them into errors of ours at once."""
    own = set(ERRORS) | {"ValueError", "AssertionError", "AttributeError", "KeyError", "OSError", "Interrupted"}
    if shown(path) == THIRD_PARTY["nbdkit"]:
        own.add("RuntimeError")  # how a plugin tells nbdkit that a request failed
    own |= {node.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            name = node.exc.func.id
            assert name in own or not name[0].isupper() or shown(path).startswith(GUEST), f"{shown(path)}:{node.lineno}"


CASE = re.compile(r"\b([HVNL])(\d\d)(?:-\1(\d\d))?\b")


def cases_in(text: str) -> Iterator[str]:
    """The cases of docs/threats.md that a text names; "H01-H12" names twelve."""
    for letter, first, last in CASE.findall(text):
        yield from (f"{letter}{number:02}" for number in range(int(first), int(last or first) + 1))


@pytest.mark.parametrize("path", [*sources(), *sorted((TREE / "tests").rglob("*.py"))], ids=shown)
def test_every_case_that_is_named_is_explained(path: Path) -> None:
    threats = (TREE / "docs/threats.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| ([HVNL]\d\d) \|", threats, re.MULTILINE))
    assert explained
    assert set(cases_in(path.read_text(encoding="utf-8"))) <= explained

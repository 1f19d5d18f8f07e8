# SPDX-License-Identifier: BSD-2-Clause
"""Starting programs: closed stdin, small environment, deadline, and failures that explain themselves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ganeti_plugin.errors import CommandError
from ganeti_plugin.run import ENVIRONMENT, quoted, run, spawn


@pytest.fixture(name="program")
def _program(tmp_path: Path) -> Path:
    """A program that tells what it was given, and then does what its argument says."""
    path = tmp_path / "program"
    path.write_text(
        f"#!{sys.executable} -S\n"
        "import json, os, signal, sys, time\n"
        "what = sys.argv[1]\n"
        "if what == 'tell':\n"
        "    print(json.dumps([dict(os.environ), sys.stdin.read(), sys.argv[2:], os.getcwd()]))\n"
        "elif what == 'fail': print('first\\n\\n  last ', file=sys.stderr); sys.exit(3)\n"
        "elif what == 'die': os.kill(os.getpid(), signal.SIGKILL)\n"
        "elif what == 'hang': time.sleep(60)\n"
        "elif what == 'write': os.write(int(sys.argv[2]), b'x')\n",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def test_a_child_sees_a_small_environment_and_no_stdin(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSP_IMG_PASSWD", "secret")
    environment, stdin, arguments, _ = json.loads(run([program, "tell", "a b"], env={"MORE": "1"}).stdout)
    assert {name: value for name, value in environment.items() if name != "LC_CTYPE"} == {**ENVIRONMENT, "MORE": "1"}
    assert stdin == ""
    assert arguments == ["a b"]


def test_stdin_and_folder_are_given(program: Path, tmp_path: Path) -> None:
    _, stdin, _, folder = json.loads(run([program, "tell"], stdin=b"text", cwd=tmp_path).stdout)
    assert (stdin, folder) == ("text", str(tmp_path))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("fail", "{program} failed (exit code 3): first; last (repeat it with: {program} fail)"),
        ("die", "{program} failed (killed by SIGKILL): it printed no reason (repeat it with: {program} die)"),
    ],
)
def test_a_failure_tells_why_and_how_to_repeat_it(program: Path, what: str, sentence: str) -> None:
    with pytest.raises(CommandError) as caught:
        run([program, what])
    assert str(caught.value) == sentence.format(program=program)


def test_allowed_exit_codes_are_no_failures(program: Path) -> None:
    assert run([program, "fail"], allowed=(0, 3)).returncode == 3


def test_a_program_that_does_not_end_is_ended(program: Path) -> None:
    with pytest.raises(CommandError, match=r"no end after 0\.5 s"):
        run([program, "hang"], timeout=0.5)


def test_a_missing_program_is_named() -> None:
    for start in (run, spawn):
        with pytest.raises(CommandError, match=r"^/tmp/no/such failed \(not found\): the program is not installed"):
            start(["/tmp/no/such", "x"])


def test_what_cannot_be_started_is_explained(program: Path, tmp_path: Path) -> None:
    program.chmod(0o600)
    with pytest.raises(CommandError, match=r"it cannot be started\): .*Permission denied"):
        run([program, "tell"])
    program.chmod(0o755)
    with pytest.raises(CommandError, match=r"it cannot be started\): .*No such file or directory: .*missing"):
        run([program, "tell"], cwd=tmp_path / "missing")


def test_only_the_named_descriptors_are_inherited(program: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        assert run([program, "write", str(writer)], allowed=(0, 1)).returncode == 1
        run([program, "write", str(writer)], pass_fds=(writer,))
        assert os.read(reader, 9) == b"x"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_spawned_program_is_the_callers_to_end(program: Path) -> None:
    process = spawn([program, "hang"])
    assert process.poll() is None
    process.kill()
    assert process.wait(10) == -9


def test_quoting() -> None:
    assert quoted(["a", Path("/b c"), "$d"]) == "a '/b c' '$d'"

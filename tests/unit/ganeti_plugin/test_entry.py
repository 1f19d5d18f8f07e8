# SPDX-License-Identifier: BSD-2-Clause
"""The outer wall: one sentence and the right exit status for everything that can happen below."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ganeti_plugin import entry
from ganeti_plugin.errors import CommandError, InputError, IntegrityError, MissingVariableError, StateError

TREE = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


def test_success_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.guarded("program", lambda: None) == 0
    assert entry.guarded("program", lambda: 3) == 3
    assert capsys.readouterr() == ("", "")


def test_an_answer_that_cannot_be_written_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert entry.guarded("program", lambda: print("answer")) == 1
        full.flush()  # as the interpreter does at exit
    assert capsys.readouterr().err == "error: program: No space left on device\n"


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InputError(message="no such image"), 2, "program: no such image"),
        (StateError(message="busy", hint="wait"), 1, "program: busy (wait)"),
        (IntegrityError(message="a map ends early"), 1, "program: a map ends early"),
        (
            MissingVariableError(action="create", name="VOL_NAME"),
            2,
            "program: create: the environment variable VOL_NAME is missing "
            "(VOL_NAME is set by Ganeti: start this program through Ganeti, or set it by hand)",
        ),
        (
            CommandError(program="nft", reason="exit code 1", detail="syntax error", command="nft -f -"),
            1,
            "program: nft failed (exit code 1): syntax error (repeat it with: nft -f -)",
        ),
        (OSError(28, "No space left on device", "/store"), 1, "program: /store: No space left on device"),
        (KeyboardInterrupt(), 130, "program: interrupted by SIGINT"),
        (
            ValueError("what"),
            70,
            "program: internal error (ValueError: what); the traceback is in the system log, please report it",
        ),
    ],
)
def test_an_error_is_one_sentence(
    error: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.guarded("program", raising(error)) == status
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_defect_shows_its_traceback_when_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEBUG_LEVEL", "1")
    entry.guarded("program", raising(ValueError("what")))
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_cleanup_run(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    cleaned: list[str] = []

    def main() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append("up")

    assert entry.guarded("program", main) == 128 + number
    assert cleaned == ["up"]
    assert capsys.readouterr().err == f"error: program: interrupted by {number.name}\n"


def test_a_second_signal_waits_for_nothing() -> None:
    code = (
        "import signal, sys, time\nsys.path.insert(0, sys.argv[1])\nfrom ganeti_plugin import entry\n"
        "def main():\n    signal.signal(signal.SIGINT, lambda *_: None)\n"
        "    entry.end_at_the_second_signal('program')\n"
        "    print('ready', flush=True)\n    time.sleep(60)\n"
        "sys.exit(entry.guarded('program', main))"
    )
    command = [sys.executable, "-c", code, str(TREE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert "a second signal does not wait" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "error: program: interrupted by SIGINT\n"
        assert process.wait(30) == 128 + signal.SIGINT


def test_streams_that_a_caller_closed_are_written_to_by_nobody(tmp_path: Path) -> None:
    """Else the next file that is opened has their number."""
    code = (
        "import os, sys\nsys.path.insert(0, sys.argv[1])\nfrom ganeti_plugin import entry\n"
        "def main():\n    file = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)\n    print('said', flush=True)\n"
        "    print('warned', file=sys.stderr, flush=True)\n    os.write(file, b'kept')\n"
        "sys.stdout = sys.stderr = None\nos.closerange(0, 3)\nsys.exit(entry.guarded('program', main))"
    )
    path = tmp_path / "file"
    assert subprocess.run([sys.executable, "-c", code, str(TREE), str(path)], timeout=30, check=False).returncode == 0
    assert path.read_bytes() == b"kept"


def test_an_end_writes_what_was_printed_and_waits_for_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program"
    text = "import atexit; from ganeti_plugin.entry import end; atexit.register(print, 'later'); print('now'); end(3)"
    program.write_text(text)
    done = subprocess.run([sys.executable, program], env={"PYTHONPATH": str(TREE)}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"now\n", b"")

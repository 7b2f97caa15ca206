"""Ctrl-C anywhere: during imports, in Python, in C code that does not return; one line, 130, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kexecemu import interrupt
from kexecemu.cli import main

ROOT = Path(__file__).resolve().parents[1]
LINE = "kexecemu: interrupted\n"


def hearing_signals() -> None:
    """As in a terminal, even where we are a shell's job in the background, or nohup's."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(*command: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """A process that hears of signals, and says when it is ready."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hearing_signals,
    )


# A mutex that is locked twice: a call that no signal ends, as a file system's may be.
STUCK = """
import ctypes, sys
from pathlib import Path
from kexecemu.children import child
from kexecemu.files import replacing
from kexecemu.folders import temporary_folder
from kexecemu.interrupt import guarded
mutex = ctypes.create_string_buffer(128)
lock = ctypes.CDLL(None).pthread_mutex_lock
with guarded(), temporary_folder("t.", Path.cwd()), replacing("result") as file, child(["sleep", "60"]) as process:
    file.write(b"half")
    file.flush()
    print(process.pid, flush=True)
    lock(mutex)
    lock(mutex)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of all zeros is glibc's and musl's")
def test_a_call_that_does_not_come_back_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "result").write_text("the one before")
    process = start("-c", STUCK, cwd=tmp_path)
    assert process.stdout is not None
    started = int(process.stdout.readline())
    time.sleep(0.2)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert time.monotonic() - begin < 3  # 0.7 s on a machine with nothing else to do
    assert (process.returncode, said) == (130, LINE)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert (tmp_path / "result").read_text() == "the one before"
    with pytest.raises(ProcessLookupError):
        while True:
            os.kill(started, 0)
            assert time.monotonic() - begin < 10
            time.sleep(0.05)


TERMINATED = """
import time
from pathlib import Path
import kexecemu.cli
from kexecemu.folders import temporary_folder
def command_line():
    with temporary_folder("t.", Path.cwd()):
        print("there", flush=True)
        time.sleep(60)
kexecemu.cli.main = command_line
from kexecemu.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_terminated_or_loses_the_terminal_takes_what_is_temporary_along(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start("-c", TERMINATED, cwd=tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    assert list(tmp_path.iterdir())
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


DURING_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["kexecemu", *{words!r}]
from kexecemu.__main__ import main
print(main())
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kexecemu.cli", ["list", "models"]),
        ("typer", ["list", "models"]),
        ("kexecemu.commands.load", ["list", "models"]),
        ("kexecemu.scenario.runner", ["run", "golden"]),
        ("unicorn", ["run", "golden"]),
        (
            "kexecemu.campaign.engine",
            ["campaign", "campaign-16m", "--faults", "9", "--seed", "1", "--out", "out"],
        ),
    ],
)
def test_ctrl_c_during_an_import_is_one_line(tmp_path: Path, name: str, words: list[str]) -> None:
    process = start("-c", DURING_IMPORT.format(name=name, words=words), cwd=tmp_path)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said, error) == (130, "", LINE)
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_interrupted_in_python_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kexecemu.crash.kernel.Kernel.boot", interrupted)
    assert main(["run", "golden"]) == 130
    assert capsys.readouterr().err == LINE


def test_what_is_promised_to_be_undone_is_undone_newest_first_and_only_in_its_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def ended(status: int) -> None:
        raise SystemExit(status)

    def fails() -> None:
        done.append("fails")
        raise OSError

    monkeypatch.setattr("os._exit", ended)
    monkeypatch.setattr("os.write", lambda fd, line: done.append(f"{fd} {line.decode()}"))
    with interrupt.undoing(lambda: done.append("first")):
        with interrupt.undoing(lambda: done.append("over")):
            pass
        with interrupt.undoing(fails), pytest.raises(SystemExit) as ending:
            interrupt.leave()
    assert ending.value.code == 130
    assert done == ["fails", "first", f"2 {LINE}"]


def test_a_guard_leaves_signals_as_they_were() -> None:
    before = signal.set_wakeup_fd(-1)
    try:
        with interrupt.guarded():
            inside = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(inside)
            assert inside != -1
            with interrupt.guarded():  # somebody hears of signals already
                assert signal.set_wakeup_fd(inside) == inside
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)

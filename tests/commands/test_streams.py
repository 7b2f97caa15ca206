"""stdout and stderr that are full, closed, unread or of few characters; and what is said of a bug of ours."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kexecemu.cli import main
from kexecemu.commands import list as listing
from kexecemu.commands.bug import BUG
from kexecemu.commands.streams import UNREAD
from kexecemu.errors import BuildError, BusError, FetchError, KexecError, MachineError

ERAS = "list eras"
SMALL = "crash --ram 64M --cmdline crashkernel=16M"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell in which kexecemu is a function."""
    function = f'kexecemu() {{ "{sys.executable}" -m kexecemu "$@"; }}\n'
    env = {**os.environ, **environment}
    command = ["bash", "-c", function + line]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize(
    "words", [ERAS, f"{ERAS} --json", "schema", "crash --help", "--version", SMALL, f"{SMALL} --json"]
)
@pytest.mark.parametrize(
    ("to", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_stdout_that_takes_nothing_is_one_line(words: str, to: str, why: str) -> None:
    done = shell(f"kexecemu {words} {to}")
    assert (done.returncode, done.stderr) == (2, f"kexecemu: stdout: {why}\n")


@pytest.mark.parametrize("to", ["2>/dev/full", "2>&-"])
def test_a_stderr_that_takes_nothing_changes_nothing(to: str) -> None:
    good, bad = shell(f"kexecemu {ERAS} {to}"), shell(f"kexecemu run nothing {to}")
    assert good.returncode == 0 and "6.12" in good.stdout
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "")
    assert shell(f"kexecemu crash -v {SMALL.removeprefix('crash')} {to}").returncode == 0


def test_no_file_gets_what_was_for_a_stream_that_is_closed(tmp_path: Path) -> None:
    done = shell(f"kexecemu {SMALL} --timeline {tmp_path / 't'} >&- 2>&- <&-")
    assert done.returncode == 2
    assert json.loads((tmp_path / "t").read_text().splitlines()[0])["when"] == 0


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_has_enough_ends_the_command_quietly(reader: str) -> None:
    done = shell(f"kexecemu list configs | {reader}; echo ${{PIPESTATUS[0]}}")
    lines = done.stdout.splitlines()
    assert done.stderr == "" and len(lines) == 1 + (reader != "true")
    # To one that has read it all before it goes there is nothing to say either.
    assert int(lines[-1]) in ((UNREAD,) if reader == "true" else (UNREAD, 0))


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "cp437", "utf-8:strict", "utf-16"])
def test_what_an_encoding_does_not_have_is_written_as_an_escape(encoding: str, tmp_path: Path) -> None:
    text = (
        'schema = 1\nname = "\u2026 \ud7ff"\n[machine]\nram = "64M"\n[kernel]\ncmdline = "crashkernel=16M"\n'
    )
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    given = {"env": {**os.environ, "PYTHONIOENCODING": encoding}, "cwd": tmp_path}
    for words, status in (("s.toml", 0), ("\u2026\ud7ff", 2)):
        command = [sys.executable, "-m", "kexecemu", "run", words]
        done = subprocess.run(command, capture_output=True, check=False, **given)  # type: ignore[call-overload]
        assert done.returncode == status
        said = (done.stderr if status else done.stdout).decode(encoding.partition(":")[0])
        assert ("\\u2026" in said) == (encoding[:5] in ("ascii", "latin", "cp437"))
        assert ("\u2026" in said) != ("\\u2026" in said) and (status == 2 or done.stderr == b"")


def test_a_name_that_is_no_text_is_told_by_its_bytes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe.toml"
    done = subprocess.run([sys.executable, "-m", "kexecemu", "run", name], capture_output=True, check=False)
    assert done.returncode == 2 and b"\\xff\\xfe.toml: No such file" in done.stderr


# -- our own errors ----------------------------------------------------------------------------------------------------


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """A command that raises, and its exit status."""

    def run(error: BaseException) -> int:
        def fail() -> None:
            raise error

        monkeypatch.setitem(listing.LISTS, "eras", fail)  # type: ignore[arg-type]
        return main(["list", "eras"])

    return run


@pytest.mark.parametrize(
    "error",
    [
        IndexError("list index\nout of range"),
        AssertionError(),
        ValueError("\x1b[2J" + "x" * 5000),
        RecursionError("deep"),
        KeyError("\ud800"),
        OSError(errno.EPIPE, "Broken pipe"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    ],
)
def test_a_bug_is_one_line_that_asks_for_a_report_and_says_where_its_traceback_is(
    error: BaseException,
    raising: Callable[[BaseException], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("KEXECEMU_DEBUG", raising=False)
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    assert raising(error) == BUG == 70
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and len(err) < 600 and "Traceback" not in err
    named = re.fullmatch(
        rf"kexecemu: a bug of ours, {type(error).__name__}.*please report it with (\S+), .*\n", err
    )
    assert named is not None, err
    text = Path(named[1]).read_text()
    assert "Traceback (most recent call last)" in text and "test_streams.py" in text and "kexecemu 0." in text
    assert Path(named[1]).parent == tmp_path


def test_its_traceback_is_on_the_terminal_where_that_was_asked_for(
    raising: Callable[[BaseException], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("KEXECEMU_DEBUG", "1")
    assert raising(ZeroDivisionError("x")) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)") and "\nkexecemu: a bug of ours" in err


def test_a_bug_whose_traceback_cannot_be_saved_is_told_all_the_same(
    raising: Callable[[BaseException], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert raising(ZeroDivisionError("x")) == 70
    assert "KEXECEMU_DEBUG=1 prints it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MachineError("the engine\nfailed"), "the engine failed"),
        (BusError(0x1000, 4), "no RAM at physical 0x1000, length 0x4"),
        (FetchError("no apt"), "no apt"),
        (BuildError("make"), "make"),
        (KexecError(22, "kimage_alloc", "too much"), "too much (EINVAL from kimage_alloc)"),
        (MemoryError(), "this machine has not enough memory for it"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "/tmp/x: No space left on device"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (PermissionError(errno.EACCES, "Permission denied", "store"), "store: Permission denied"),
    ],
)
def test_what_a_user_or_their_machine_can_help_is_status_2(
    error: BaseException,
    line: str,
    raising: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert raising(error) == 2
    assert capsys.readouterr().err == f"kexecemu: {line}\n"

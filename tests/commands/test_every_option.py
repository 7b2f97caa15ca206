"""Every option of every command, as typer has it, with values that are wrong: one line, and never a traceback.

Nothing is listed but how a command is called at all: a new option is covered when it is there.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kexecemu.cli import app, main

SOME = int(os.environ.get("KEXECEMU_VALUES", "1"))
"""How many values an option is given, of those below; all of them were tried."""

DIGITS = "1" * 4301
VALUES = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1.5",
        "1e3",
        "0x",
        "0x" + DIGITS,
        DIGITS,
        "-" + DIGITS,
        "٣",
        "²",
        "1_000",
        "True",
        "nan",
    ),
    *(
        "99999999999999999999",
        "1T",
        "1K",
        "K",
        "-",
        "--",
        "=",
        "a=b",
        "a=",
        "=b",
        ",",
        "a,b",
        "a+1",
        "+",
        "none",
    ),
    *(
        "default",
        "fetched:",
        "fetched:x",
        "nowhere",
        "nowhere/x",
        "folder",
        "text",
        "pipe.toml",
        "/dev/zero",
        "/",
    ),
    *(
        "/proc/self/mem",
        "x" * 300,
        "x" * 5000,
        "é",
        "\udce9",
        "\x1b[2J",
        "a\nb",
        "%s%n",
        "{0}",
        "*",
        "../../..",
        "~",
    ),
    *("initrd=", "initrd+" + DIGITS + "=ff", "a\0b", "crashkernel=" + DIGITS, "16M@٣", "KFENCE=" + DIGITS),
)

SMALL = ("--ram", "64M", "--cmdline", "crashkernel=16M")
CALLS = {
    "campaign": ("s.toml", "--faults", "1", "--seed", "1", "--out", "out", "--audit", "0", "--workers", "1"),
    "crash": SMALL,
    "load": SMALL,
    "linear-map": ("--ram", "64M"),
    "replay": ("dma.bit-flip.3.initrd+1a2b.after-load", "s.toml"),
    "run": ("s.toml",),
}
"""How a command is called where its arguments have to be something; anything else is called with text for each."""


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*words, name))
        else:
            yield (*words, name), one


def called(words: tuple[str, ...], command: Any) -> tuple[str, ...]:
    if " ".join(words) in CALLS:
        return CALLS[" ".join(words)]
    given: list[str] = []
    for one in command.params:
        if one.required:
            given += ["text"] if one.param_type_name == "argument" else [one.opts[0], "text"]
    return tuple(given)


PARAMETERS = [
    pytest.param(words, command, one, id=f"{' '.join(words)} {one.opts[0]}")
    for words, command in commands(typer.main.get_command(app))
    for one in command.params
    if not getattr(one, "is_flag", False)
]


def test_there_are_options_of_every_command() -> None:
    with_options = {parameter.values[0] for parameter in PARAMETERS}
    assert len(PARAMETERS) > 150
    assert ("purgatory", "build") in with_options and ("kernel", "judge") in with_options


@pytest.mark.parametrize(("words", "command", "parameter"), PARAMETERS)
def test_a_wrong_value_is_one_line(
    words: tuple[str, ...],
    command: Any,
    parameter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEXECEMU_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt that fetches, no compiler
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("text\n" * 10)
    os.mkfifo(tmp_path / "pipe.toml")
    scenario = 'schema = 1\nname = "x"\n[machine]\nram = "64M"\n[kernel]\ncmdline = "crashkernel=16M"\n'
    base = called(words, command)
    chosen = random.Random(f"{words} {parameter.name}").sample(VALUES, min(SOME, len(VALUES)))
    writes = parameter.opts[0] in ("--out", "--timeline", "--html", "--vmcore", "--rows")
    for stream in (sys.stdout, sys.stderr):  # as the command line has its own; pytest's are in their places
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for value in chosen:
        (tmp_path / "s.toml").write_text(scenario)
        if parameter.param_type_name == "argument":
            # In its place among the arguments, each of which is a word of its own.
            place = [one.name for one in command.params if one.param_type_name == "argument"].index(
                parameter.name
            )
            line = [*base[:place], value, *base[place + 1 :]]
        else:
            line = [*base, parameter.opts[0], value]
        if writes and value == "pipe.toml":
            continue  # nobody reads it
        status = main([*words, *line])
        said = capsys.readouterr()
        told = f"{words} {line}: {status}: {said.err}"
        assert status in (0, 1, 2), told
        assert "Traceback" not in said.err, told
        if status == 2 and not said.out:
            assert said.err.startswith("kexecemu: ") and len(said.err.splitlines()) == 1, told
        if (tmp_path / "out").exists():
            (tmp_path / "out").rename(tmp_path / f"done {len(list(tmp_path.iterdir()))}")
    assert writes or (tmp_path / "text").read_text() == "text\n" * 10

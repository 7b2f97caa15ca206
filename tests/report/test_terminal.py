"""The account on a terminal: lines go on under their column, words stay whole; elsewhere nothing is folded."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from kexecemu.report.terminal import line_breaks, print_table, say, say_labelled

DIGEST = "03cce4cc2e63ff594a93740cec5d1ca30d49cda00ae9edc0ea9437df775817c5"


class Terminal(io.StringIO):
    """A file that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines_of(file: io.StringIO) -> list[str]:
    return file.getvalue().splitlines()


def on(width: int) -> tuple[Console, Terminal]:
    file = Terminal()
    return Console(file=file, width=width, color_system=None), file


def test_a_long_line_goes_on_under_its_column_and_a_word_is_never_cut() -> None:
    console, file = on(80)
    say(
        console,
        "      12,178  [cyan]loaded        [/] ",
        f"crash image loaded, entry 0x7ebd3000, digest {DIGEST}",
    )
    assert lines_of(file) == [
        "      12,178  loaded         crash image loaded, entry 0x7ebd3000, digest",
        f"                {DIGEST}",
    ]
    say(console, "damage       ", "a " * 40)
    assert all(line.startswith(" " * 13) for line in lines_of(file)[3:])
    assert max(map(len, lines_of(file))) <= 80


@pytest.mark.parametrize("width", [30, 45, 60, 80, 132])
def test_at_any_width_all_words_are_there_in_their_order(width: int) -> None:
    console, file = on(width)
    text = f"initrd: 0x18400 bytes at 0x76c10000-0x76c28fff, {DIGEST} (0x19000 in memory)"
    say(console, "      12,178  segment        ", text)
    assert file.getvalue().split() == ["12,178", "segment", *text.split()]
    assert all(len(line) <= max(width, len(DIGEST)) for line in lines_of(file))


def test_elsewhere_a_line_stays_one_line_and_a_command_does_everywhere() -> None:
    file = io.StringIO()
    say(Console(file=file, width=80, color_system=None), "a  ", "word " * 60)
    assert len(lines_of(file)) == 1
    console, terminal = on(40)
    say(console, "  ", "kexecemu replay dma.byte.10.initrd+10.after-load campaign-16m", folded=False)
    assert len(lines_of(terminal)) == 1


def test_a_label_is_what_two_spaces_end() -> None:
    console, file = on(30)
    say_labelled(console, "[bold]audit[/]  two of three hundred faults ended as decided")
    assert lines_of(file) == ["audit  two of three hundred", "       faults ended as decided"]


def test_a_table_cuts_no_number_and_folds_the_words_behind_them() -> None:
    console, file = on(40)
    rows = [[("silent", "red"), ("1,234,567", ""), ("corrupt bytes reached the capture kernel", "dim")]]
    print_table(console, ("outcome", "faults", ""), rows)
    assert lines_of(file) == [
        "outcome     faults  ",
        "silent   1,234,567  corrupt bytes",
        "                    reached the capture",
        "                    kernel",
    ]


def test_breaks_are_between_words_only() -> None:
    assert line_breaks("one two three", 7) == [8]
    assert line_breaks("one two three", 3) == [4, 8]
    assert line_breaks(DIGEST, 10) == []
    assert line_breaks("", 10) == []


def seen(environment: dict[str, str]) -> str:
    """What a terminal of 80 columns gets from a run; its stderr goes elsewhere."""
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "kexecemu", "run", "initrd-stamped"],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    data = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # Linux's way to say that nobody writes any more
            break
        if not more:
            break
        data += more
    os.close(ours)
    assert run.wait() == 0
    return data.decode()


def test_the_verdict_has_a_colour_on_a_terminal_and_none_with_no_color() -> None:
    text = seen({"NO_COLOR": ""})
    assert "\x1b[1;33mdetected\x1b[0m" in text
    plain = seen({"NO_COLOR": "1"})
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == plain
    assert max(len(line) for line in plain.splitlines()) <= 80

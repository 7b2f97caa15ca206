"""stdout for people: colours and folded lines where it is a terminal, plain whole lines where it is not."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.text import Text

__all__ = ["Cell", "account", "print_table", "say"]

_NARROWEST = 20  # columns for what is folded; with fewer the terminal's own folding is no worse

Cell = tuple[str, str]
"""Text and style."""


def account() -> Console:
    """A console on stdout. It writes no control codes where that is no terminal, or where NO_COLOR is set."""
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(color_system=None if plain else "auto", highlight=False)


def _width(console: Console) -> int | None:
    """How many columns there are; None where nothing is folded: what goes on to a file or a program."""
    return console.width if console.file.isatty() else None


def say(console: Console, head: str = "", body: str = "", *, folded: bool = True) -> None:
    """One line, both parts in rich's markup. On a terminal that is too narrow body goes on under its own column.

    Words are never cut: addresses are copied from here. Not folded, for a command, it stays one line in any case.
    """
    first, rest = Text.from_markup(head), Text.from_markup(body)
    width = _width(console)
    under = first.cell_len
    if not folded or width is None or width - under < _NARROWEST or under + rest.cell_len <= width:
        console.print(Text.assemble(first, rest), soft_wrap=True)
        return
    for number, line in enumerate(rest.wrap(console, width - under, overflow="ignore")):
        line.rstrip()
        console.print(Text.assemble(" " * under if number else first, line), soft_wrap=True)


def print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Numbers to the right, the first column and one without a heading to the left.

    rich's own tables cut cells off where the terminal is narrow, and a number that is cut off is a wrong one. A last
    column without a heading is words, which are folded.
    """
    widths = [
        max([len(heading), *(len(row[column][0]) for row in rows)]) for column, heading in enumerate(headings)
    ]
    words = len(headings) > 1 and not headings[-1]
    for row in [[(heading, "dim") for heading in headings], *rows]:
        cells = []
        for column, (text, style) in enumerate(row):
            if headings[column] or column == 0:
                text = text.ljust(widths[column]) if column == 0 else text.rjust(widths[column])
            cells.append(_marked(text, style))
        if words:
            say(console, "  ".join([*cells[:-1], ""]), cells[-1])
        else:
            say(console, "  ".join(cells), folded=False)


def _marked(text: str, style: str) -> str:
    return f"[{style}]{escape(text)}[/]" if style and text else escape(text)

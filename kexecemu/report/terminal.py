"""stdout for people: colours and folded lines where it is a terminal, plain whole lines where it is not."""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from kexecemu.visible import unguarded, visible, visible_line

__all__ = ["Cell", "account", "console_on", "line_breaks", "print_table", "say", "say_labelled"]

# With fewer columns than these for it, what is folded does not go on under its own column but further to the left.
_NARROWEST = 20
_SIZE = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)
_LITTLE = 4

Cell = tuple[str, str]
"""Text and style."""


class _VisibleConsole(Console):
    """rich's, whose control codes are its own alone: text is made visible on its way out, whatever it came in."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of anything that is printed."""
        for one in super().render(renderable, options):
            yield one if one.control else Segment(visible(one.text), one.style)


def console_on(stream: TextIO) -> Console:
    """A console on stdout or stderr. It writes no colours where that is no terminal, or where NO_COLOR is set."""
    plain = bool(os.environ.get("NO_COLOR"))
    # A terminal without a size says 0, of which rich makes that there is room for nothing.
    sizes = ("COLUMNS", "LINES")
    there = {name: value for name, value in os.environ.items() if name not in sizes or _SIZE.fullmatch(value)}
    shown = unguarded(stream)
    return _VisibleConsole(
        file=shown, color_system=None if plain else "auto", highlight=False, _environ=there
    )


def account() -> Console:
    """A console on stdout, for the account of what was done."""
    return console_on(sys.stdout)


def _width(console: Console) -> int | None:
    """How many columns there are; None where nothing is folded: what goes on to a file or a program."""
    return console.width if console.file.isatty() else None


def line_breaks(text: str, width: int) -> list[int]:
    """Where the second and all further lines begin when a text is folded between words at so many columns."""
    breaks: list[int] = []
    begin = 0
    for word in re.finditer(r"\S+", text):
        if begin < word.start() and cell_len(text[begin : word.end()]) > width:
            begin = word.start()
            breaks.append(begin)
    return breaks


def say(console: Console, head: str | Text = "", body: str | Text = "", *, folded: bool = True) -> None:
    """One line, in rich's markup, whatever it holds. Where a terminal is too narrow, body goes on under its own column.

    Words are never cut: addresses are copied from here. Not folded, for a command, it stays one line in any case.
    """
    first, rest = _text(head), _text(body)
    width = _width(console)
    if not folded or width is None or first.cell_len + rest.cell_len <= width:
        console.print(Text.assemble(first, rest), soft_wrap=True)
        return
    under = first.cell_len
    if width - under < _NARROWEST:
        first, rest, under = Text(), Text.assemble(first, rest), _LITTLE
    for number, line in enumerate(rest.divide(line_breaks(rest.plain, width - under))):
        line.rstrip()
        # A word that is too long for its column, a digest, begins further to the left.
        indent = " " * min(under, max(width - line.cell_len, 0))
        console.print(Text.assemble(indent if number else first, line), soft_wrap=True)


def say_labelled(console: Console, text: str = "", *, folded: bool = True) -> None:
    """A line in rich's markup that begins with a label and two spaces: what is too long goes on behind the label."""
    line = _text(text)
    label = re.match(r"\S.*?  +", line.plain)
    head, body = line.divide([label.end()]) if label is not None else (Text(), line)
    say(console, head, body, folded=folded)


def _text(marked: str | Text) -> Text:
    # Before it is measured and folded. Markup is ASCII, so that none of it is lost, and an escape brings none.
    return marked if isinstance(marked, Text) else Text.from_markup(visible_line(marked))


def print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Numbers to the right, the first column and one without a heading to the left.

    rich's own tables cut cells off where the terminal is narrow, and a number that is cut off is a wrong one. A last
    column without a heading is words, which are folded.
    """
    rows = [[(visible_line(text), style) for text, style in row] for row in rows]
    columns = zip(headings, *([text for text, _ in row] for row in rows), strict=True)
    widths = [max(map(len, column)) for column in columns]
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

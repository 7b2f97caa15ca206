"""Docstrings here are plain text, to be read in the source. This makes reStructuredText of them, without losing a sign.

Names in backquotes, calls, options and names with an underscore become code; `kexecemu.x.y` becomes a link where there
is such a module. Rows of "name  text" become a definition list, any other indented lines a literal block. Doctests,
lists and *words* stay as they are; every other sign that would mean something is escaped.
"""

from __future__ import annotations

import ast
import enum
import importlib.util
import inspect
import re
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

from sphinx.application import Sphinx

_INLINE = re.compile(
    r"``(?P<double>[^`]+)``"
    r"|`(?P<code>[^`]+)`"
    r"|(?P<module>\bkexecemu(?:\.\w+)+)"
    r"|(?P<call>\b[A-Za-z_][\w.]*\([^()\s]*\))"
    r"|(?P<option>(?<![\w-])--?[a-z][\w-]*(?![\w-]))"
    r"|(?P<name>\b\w*[^\W_]_\w+|\b\w+_\b|\b_\w+)"
    r"|(?P<emphasis>(?<![\w*])\*\w[\w -]*\*(?![\w*]))"
    r"|(?P<sign>[\\*`|])"
)
_ROW = re.compile(r"(?P<name>\S+(?:[ ,/|]+\S+){0,2})[ ]{2,}(?P<text>\S.*)")
_NO_PYTHON = re.compile(r"<factory>|<function <lambda>>|<[\w.<> ]+ at 0x[0-9a-f]+>")
_ITEM = re.compile(r"(?:[-*]|\d+\.) +\S")


def inline(text: str) -> str:
    """A line of plain text as reStructuredText."""

    def made(match: re.Match[str]) -> str:
        kind, found = match.lastgroup, match[match.lastgroup or 0]
        if kind == "emphasis":
            return found
        if kind == "sign":
            return "\\" + found
        found = f":py:mod:`{found}`" if kind == "module" and _is_module(found) else f"``{found.strip()}``"
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        # Markup begins behind a space or an opening sign, and ends before anything but a letter.
        start = "" if not before or before in " ([{<'\"-/:" else "\\ "
        end = "" if not after or after in " )]}>'\"-/:.,;!?" else "\\ "
        return start + found + end

    return _INLINE.sub(made, text)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Paragraphs; indented ones that follow each other are one, with the blank lines between them."""
    block: list[str] = []
    gap = False
    for line in [*lines, "end"]:
        if not line.strip():
            gap = True
            continue
        if block and (line == "end" or (gap and not (block[0].startswith(" ") and line.startswith(" ")))):
            yield block
            block = []
        block += [""] * (gap and bool(block)) + [line.rstrip()]
        gap = False


def _rows(block: list[str]) -> list[tuple[str, str]] | None:
    """The block as rows of a name and its text, if all its lines have the text at the same place."""
    lines = dedent("\n".join(block)).splitlines()
    columns = [match.start("text") for line in lines if (match := _ROW.fullmatch(line))]
    if not columns:
        return None
    column = columns[0]
    rows: list[tuple[str, str]] = []
    for line in lines:
        name, text = line[:column], line[column:]
        if not name.endswith(" ") or not text.strip() or text.startswith(" "):
            return None
        if name.strip():
            rows.append((name.strip(), text))
        elif rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {text}")
    if any(name.endswith((".", ",", ":", ";")) or len(name.split()) > 3 for name, _ in rows):
        return None
    return rows


def _literal(block: list[str]) -> Iterator[str]:
    """Lines that stay as they are: Python if they are."""
    text = dedent("\n".join(block))
    try:
        ast.parse(text)
    except SyntaxError:
        language = "text"
    else:
        language = "python"
    yield from [f".. code-block:: {language}", "", *("    " + line for line in text.splitlines())]


def _item_lines(block: list[str]) -> Iterator[str]:
    for line in block:
        space = len(line) - len(line.lstrip())
        bullet = _ITEM.match(line.lstrip())
        if bullet and not space:
            mark = line.split(" ", 1)[0]
            yield f"{mark} {inline(line[len(mark) :].strip())}"
        else:
            yield "  " + inline(line.strip())


def _made(block: list[str]) -> Iterator[str]:
    if block[0].lstrip().startswith(">>>"):
        yield from block
    elif _ITEM.match(block[0]):
        yield from _item_lines(block)
    elif (rows := _rows(block)) and (len(rows) > 1 or block[0].startswith(" ")):
        for name, text in rows:
            yield f"``{name}``"
            yield "    " + inline(text)
    elif block[0].startswith(" "):
        yield from _literal(block)
    else:
        plain = next((number for number, line in enumerate(block) if line.startswith(" ")), len(block))
        yield from map(inline, block[:plain])
        if plain < len(block):
            yield ""
            yield from _made(block[plain:])


def to_rst(text: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    lines: list[str] = []
    for block in _blocks(text):
        lines += [*_made(block), ""]
    return lines


def _process(_app: Sphinx, _what: str, name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    if isinstance(obj, enum.Enum) and not any(lines):
        lines[:] = [_comment(type(obj), name.rpartition(".")[2])]
    lines[:] = to_rst(lines)


def _comment(kind: type[enum.Enum], member: str) -> str:
    """What stands behind the member of an enumeration in its source."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
    match = re.search(rf"^\s+{member}\s*=.*?\s#:? *(.+)$", source, re.MULTILINE)
    return match[1] if match else ""


def _skip(_app: Sphinx, _what: str, _name: str, obj: Any, _skip: bool, _options: Any) -> bool | None:
    """Leave out what a named tuple or a struct says of its own fields."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") else None


def _signature(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """What a dataclass makes anew each time has no value to show; and what is shown has to be Python."""
    return (_NO_PYTHON.sub("...", signature) if signature else signature), returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc."""
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

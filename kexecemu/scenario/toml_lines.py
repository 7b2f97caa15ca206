"""On which line of a scenario file a key stands, and what could stand there instead of what is wrong.

tomllib says no positions. But a file of which only the first lines are read has the keys of these lines and no others,
so the line is found by reading less and less, with the same parser that has read the whole: whatever way there is to
write a key, it is found.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import msgspec.inspect as inspect

from kexecemu.suggest import did_you_mean

__all__ = ["Path", "at_line", "line_of", "possible_words", "validation_text"]

Path = Sequence[str | int]

_WHERE = re.compile(r"(?P<what>.*) - at `\$(?P<path>[^`]*)`\Z", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`\Z", re.DOTALL)
_INVALID = re.compile(r"Invalid enum value '(.*)'", re.DOTALL)
_GOT = re.compile(r"got `(\w+)`")
_LONGEST = 500  # lines of one value; whose value has more is not told the line
_STEP = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")


def line_of(text: str, path: Path) -> int | None:
    """The first line, counted from 1, of what is at a path: ("fault", 1, "at"). None when it is not in the text.

    Of a table it is the line that first speaks of it.
    """
    if not path:
        return None
    lines = text.split("\n")

    def whole(count: int) -> tuple[int, dict[str, Any]] | None:
        """The first `count` lines without those of a value that goes on behind them: how many, and their keys."""
        for end in range(count, max(count - _LONGEST, 0) - 1, -1):
            try:
                return end, tomllib.loads("\n".join([*lines[:end], ""]))
            except tomllib.TOMLDecodeError:
                continue
        return None

    low, high = 0, len(lines)  # in the first `low` lines it is not, in `high` it is
    found = whole(high)
    if found is None or not _has(found[1], path):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        found = whole(middle)
        if found is None:
            return None
        low, high = (low, middle) if _has(found[1], path) else (middle, high)
    found = whole(high - 1)
    return found[0] + 1 if found is not None else None


def _has(data: Any, path: Path) -> bool:
    for step in path:
        if isinstance(step, int):
            if not isinstance(data, list) or step >= len(data):
                return False
        elif not isinstance(data, Mapping) or step not in data:
            return False
        data = data[step]
    return data is not None


def at_line(text: str, path: Path, words: object) -> str:
    """ "line N: WORDS", with the line of the table where the key is not given; the words alone without that."""
    line = None
    for count in range(len(path), 0, -1):
        line = line or line_of(text, path[:count])
    return f"line {line}: {words}" if line is not None else str(words)


def validation_text(error: msgspec.ValidationError, text: str, form: type) -> str:
    """msgspec's words with the line of the key and, where only some words are possible, which these are.

    form is what the text was to be converted to.
    """
    match = _WHERE.match(str(error))
    words, where = (match["what"], match["path"]) if match else (str(error), "")
    steps = [_step(match) for match in _STEP.finditer(where)]
    path = steps[: steps.index("...")] if "..." in steps else steps
    unknown = _UNKNOWN.match(words)
    types = _types(inspect.type_info(form), steps)
    if unknown is not None:
        tables = (one for one in types if isinstance(one, inspect.StructType))
        words += did_you_mean(unknown["name"], [field.encode_name for one in tables for field in one.fields])
        path.append(unknown["name"])
    elif "Invalid enum value" in words:
        known = possible_words(form, steps)
        given = _INVALID.search(words)
        words += did_you_mean(given[1], known) if given is not None else ""
        words += f"; known are {', '.join(known)}"
    elif path != steps:
        path = [*path, *_culprit(_at(text, path), words)]
    got = _GOT.search(words)
    if "`str" in words and got is not None and got[1] in ("bool", "int", "float"):
        words += ": put it in quotes"
    elif words.startswith("Expected `array`, got `object`"):
        words += f": a table of which there may be several is [[{path[-1]}]]"
    if match:
        words += f" - at `${where}`"
    return at_line(text, path, words)


def _at(text: str, path: Path) -> Any:
    data: Any = tomllib.loads(text)
    for step in path:
        data = data[step]
    return data


def _step(match: re.Match[str]) -> str | int:
    """A key, a number, or "..." for some key of a table, msgspec does not say which."""
    index = match["index"]
    return int(index) if index not in (None, "...") else match["key"] or index


def _culprit(table: Any, words: str) -> list[str | int]:
    """The key of the value in a table that is of the wrong type."""
    got = _GOT.search(words)
    if got is None or not isinstance(table, Mapping):
        return []
    return [key for key, value in table.items() if type(value).__name__ == got[1]][:1]


def _types(root: inspect.Type, path: Path) -> list[inspect.Type]:
    """What may stand at a path: several types where there is a choice."""
    found = [root]
    for step in path:
        below: list[inspect.Type] = []
        for one in _flat(found):
            if isinstance(one, inspect.StructType) and isinstance(step, str):
                below += [field.type for field in one.fields if field.encode_name == step]
            elif isinstance(one, inspect.ListType | inspect.VarTupleType) and isinstance(step, int):
                below.append(one.item_type)
            elif isinstance(one, inspect.DictType):
                below.append(one.value_type)
        found = below
    return list(_flat(found))


def _flat(types: Iterable[inspect.Type]) -> Iterable[inspect.Type]:
    for one in types:
        if isinstance(one, inspect.UnionType):
            yield from _flat(one.types)
        elif isinstance(one, inspect.Metadata):  # a key's description
            yield from _flat([one.type])
        else:
            yield one


def possible_words(form: type, path: Path) -> list[str]:
    """The words that may stand at a path of what is read as form; [] where any text may."""
    known: list[object] = []
    for one in _types(inspect.type_info(form), path):
        if isinstance(one, inspect.EnumType):
            known += [member.value for member in one.cls]
        elif isinstance(one, inspect.LiteralType):
            known += one.values
    return list(map(str, known))

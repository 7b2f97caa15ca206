"""What an object says of itself at a prompt: one line or a small table, never the memory that it holds.

Addresses and registers are in hex, buffers are told by their size, and of what is long the beginning. A dataclass of
Python prints whatever it holds, which for an image with a real kernel in it is 87 MB.
"""

import dataclasses
import enum
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Set, Sized
from pathlib import PurePath
from typing import Any, TypeVar

from kexecemu.errors import KexecemuError
from kexecemu.visible import visible

__all__ = ["brief", "shown"]

_Class = TypeVar("_Class", bound=type)

_LINE = 100  # characters: what is longer becomes a table
_TABLE = 1400  # characters for all values of a table
_LEAST, _MOST = 60, 300  # for one value
_COLUMN, _SPARE = 8, 400  # members that get a line each, and characters for all such
_SMALL = 32  # bytes: a digest is worth seeing, a page is not

# Numbers that people count in tens, by how their names end; all others are addresses, sizes or registers.
_COUNTED = re.compile(
    r"(instructions|when|time|idle|seed|faults|population|count|cpus?|number|position|pid|sample|audited|version|"
    r"chunk|total|index|width|generation|events|nodes|exceptions|major|minor|symbols)$"
)


def shown(*names: str, **told: Callable[[Any], object]) -> Callable[[_Class], _Class]:
    """Give a class its repr(): the attributes `names`, or the fields of a dataclass, a named tuple or a msgspec.Struct.

    told are more of them, or some in other words: a function of the object for each. A value that cannot be had, of a
    closed board for example, says why.
    """

    def decorate(cls: _Class) -> _Class:
        def show(self: object) -> str:
            return visible(_table(_name(self), _values(self, names, told)))

        show.__name__, show.__qualname__ = "__repr__", f"{cls.__qualname__}.__repr__"
        changed: Any = cls
        changed.__repr__ = show
        changed._shown = lambda self: _values(self, names, told)  # for a brief() of it
        return cls

    return decorate


def _name(value: object) -> str:
    """The name of the object's class; a private one is some public one's helper."""
    return next((one.__name__ for one in type(value).__mro__ if one.__name__[0] != "_"), "object")


def _fields(value: object) -> Iterable[str]:
    if dataclasses.is_dataclass(value):
        return [one.name for one in dataclasses.fields(value) if one.repr and one.name[0] != "_"]
    for kind in ("_fields", "__struct_fields__"):
        if hasattr(value, kind):
            return list(getattr(value, kind))
    return ()


def _values(
    value: object, names: Iterable[str], told: Mapping[str, Callable[[Any], object]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in [*(names or _fields(value)), *told]:
        try:
            found[name] = told[name](value) if name in told else getattr(value, name)
        except KexecemuError as error:
            found[name] = error
    return found


def _table(name: str, values: Mapping[str, Any]) -> str:
    room = min(max(_TABLE // max(len(values), 1), _LEAST), _MOST)
    cells = {key: brief(one, key, room) for key, one in values.items()}
    line = f"{name}({', '.join(f'{key}={text}' for key, text in cells.items())})"
    if len(line) <= _LINE:
        return line
    width = max(map(len, cells))
    spare = _SPARE
    for key, one in values.items():
        column = [brief(each, key, _LINE) for each in one] if _can_be_column(one) else []
        size = sum(map(len, column))
        if len(cells[key]) < size <= spare:
            spare -= size
            cells[key] = f"\n{'':{width + 4}}".join(column)
    return "\n".join([f"{name}:", *(f"  {key:<{width}}  {text}" for key, text in cells.items())])


def _can_be_column(value: object) -> bool:
    """Few enough to have a line each, and more than numbers."""
    return (
        isinstance(value, list | tuple)
        and len(value) <= _COLUMN
        and not hasattr(value, "_shown")
        and all(not isinstance(one, int | float | str | bytes) for one in value)
    )


def brief(value: object, name: str = "", room: int = _LINE, deep: int = 0) -> str:
    """A value in at most about `room` characters; name, of the attribute that it is, tells counts from addresses."""
    if isinstance(value, enum.Enum):
        unnamed = isinstance(value, enum.Flag) and not value.name
        return (
            f"{type(value).__name__}({value.value:#x})" if unnamed else f"{type(value).__name__}.{value.name}"
        )
    if isinstance(value, bool | float | range) or value is None:
        return repr(value)
    if isinstance(value, int):
        return f"{value:_}" if _COUNTED.search(name) or 0 <= value < 10 else hex(value)
    if isinstance(value, bytes | bytearray | memoryview):
        size = memoryview(value).nbytes
        return f"<{size:#x} bytes {bytes(value).hex()}>" if 0 < size <= _SMALL else f"<{size:#x} bytes>"
    if isinstance(value, str | PurePath):
        text = str(value)
        quoted = repr(text[:room])  # escapes may make it longer
        if len(text) <= room and len(quoted) <= room:
            return quoted
        return f"{quoted[: room // 2]}{quoted[0]}... <{len(text):,} characters>"
    if isinstance(value, KexecemuError):
        return f"<{str(value)[: room - 2]}>"
    if isinstance(value, Mapping | list | tuple | Set) and not hasattr(value, "_shown"):
        return _collection(value, name, room, deep)
    return _object(value, room, deep)


def _collection(value: Collection[Any], name: str, room: int, deep: int) -> str:
    """As many members as there is room for, and how many more there are."""
    left, right = "{}" if isinstance(value, Mapping | Set) else "()" if isinstance(value, tuple) else "[]"
    told: list[str] = []
    size = 2
    members: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
    for one in sorted(members, key=repr) if isinstance(value, Set) else members:
        if isinstance(value, Mapping):
            text = f"{brief(one[0], '', 40, deep + 1)}: {brief(one[1], str(one[0]), 60, deep + 1)}"
        else:
            text = brief(one, name, room, deep + 1)
        last = len(told) + 1 == len(value)
        if size + len(text) + (0 if last else 20) > room:
            more = f"and {len(value) - len(told):,} more" if told else f"{len(value):,} of them"
            return f"{left}{', '.join([*told, more])}{right}"
        told.append(text)
        size += len(text) + 2
    return f"{left}{', '.join(told)}{right}"


def _object(value: object, room: int, deep: int) -> str:
    """One inside another: what it says in a sentence, else its own values if they fit, else what it is."""
    kind = type(value)
    if kind.__module__.partition(".")[0] == "kexecemu" and kind.__str__ is not object.__str__:
        text = str(value)
        if len(text) <= room:
            return text
    values = value._shown() if hasattr(value, "_shown") and deep < 2 else {}
    name, cells = _name(value), [f"{key}={brief(one, key, 40, deep + 2)}" for key, one in values.items()]
    for kept in range(len(cells), 0, -1):
        text = f"{name}({', '.join(cells[:kept])}{', ...' if kept < len(cells) else ''})"
        if len(text) <= room:
            return text
    return f"<{name} of {len(value)}>" if isinstance(value, Sized) else f"<{name}>"

"""What there is to know of one option, whichever way it is given."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from kexecemu.arguments import instance, integer, path, text
from kexecemu.errors import InputError
from kexecemu.linux.fetched import FETCHED
from kexecemu.shown import shown
from kexecemu.suggest import did_you_mean

__all__ = ["FETCHED", "Option"]


def _purgatory(value: Any, what: str) -> str:
    if value is None or isinstance(value, bool):
        return "default" if value else "none"
    return str(path(instance(value, (bool, str, Path), what), what))


# The types of options: what stands in a scenario file in their place, and what checks a value given to Setup.
_KINDS: Final[Mapping[Any, tuple[Any, Callable[[Any, str], Any]]]] = {
    bool: (bool, lambda value, what: instance(value, bool, what)),
    int: (int, integer),
    int | None: (int | None, integer),
    str: (str, text),
    str | None: (str | None, text),
    str | int | None: (str | int | None, lambda value, what: value),  # a size: read where it is used
    Path | None: (str | None, path),
    bool | str | Path | None: (str | bool, _purgatory),
    tuple[int, ...]: (list[int], lambda value, what: tuple(integer(one, what) for one in value)),
    Mapping[str, str]: (dict[str, str], lambda value, what: instance(value, Mapping, what)),
}


@shown()
@dataclass(frozen=True)
class Option:
    """What is to be known of one option besides its field in Setup, from which name, kind (its type) and default are.

    table is its table in a scenario file, "" for none; help says what it is, metavar what stands for its value. Where
    nothing is given, otherwise is the value that then holds, or without says it in words. words are all that it takes,
    names those of its values that are no path; complete is the function of kexecemu.commands.complete for others. only
    says that it is for the "model" as the first kernel alone, and real which words a real one takes. axis says
    that a matrix can go through its values; schema is more of JSON Schema.
    """

    table: str
    help: str
    metavar: str = ""
    otherwise: str | int | None = None
    without: str = ""
    words: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    complete: str = ""
    only: str = ""
    real: tuple[str, ...] = ()
    axis: bool = False
    schema: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    kind: Any = None
    default: Any = None

    @property
    def key(self) -> str:
        """Its name in a scenario: kernel.rng_ready."""
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def flag(self) -> str:
        """Its name on the command line: --rng-ready."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def description(self) -> str:
        """The help, and what holds without it where that is no value."""
        return f"{self.help} Without it: {self.without}." if self.without else self.help

    @property
    def form(self) -> Any:
        """The type of its value in a scenario file."""
        return Literal[self.words] if self.words else _KINDS[self.kind][0]

    @property
    def is_path(self) -> bool:
        """Its value is the path of a file, where it is none of its names."""
        return Path in get_args(self.kind)

    def checked(self, value: Any) -> Any:
        """A value as Setup keeps it; InputError for what is none."""
        if value is None and self.default is None:
            return None
        value = _KINDS[self.kind][1](value.value if isinstance(value, enum.Enum) else value, self.name)
        if self.words and value not in self.words:
            like = did_you_mean(value, self.words)
            raise InputError(f"{self.name} {value!r} is not known{like}; known are {', '.join(self.words)}")
        return value

    def rooted(self, value: Any, folder: Path) -> Any:
        """A value, a path as one that starts at the folder; what is a name stays one."""
        if not self.is_path or value is None or isinstance(value, bool):
            return value
        return value if str(value) in self.names or str(value).startswith(FETCHED) else folder / value

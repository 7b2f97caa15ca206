"""What callers pass in, taken if there is any sense in it and refused in one sentence if there is none."""

import enum
import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from kexecemu.errors import InputError
from kexecemu.files import read_file
from kexecemu.shown import brief

__all__ = [
    "buffer",
    "contents",
    "instance",
    "integer",
    "member",
    "number",
    "path",
    "text",
    "toml_table",
    "too_long",
]

_MOST_DIGITS = 64
_Member = TypeVar("_Member", bound=enum.Enum)
_Kind = TypeVar("_Kind")


def _kind(value: object) -> str:
    name, told = type(value).__name__, brief(value, room=60)
    return told if value is None or told.lstrip("<").startswith(name) else f"{name} {told}"


def contents(value: Any, what: str) -> bytes:
    """The bytes of a file: given as such, or by its path. InputError that names `what`, and the path if it is one."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{what}: bytes or a path are wanted, not {_kind(value)}")
    file = Path(value)
    try:
        return read_file(file)
    except OSError as error:
        named = repr(str(file)) if "\0" in str(file) else file
        raise InputError(f"{what} {named}: {error.strerror or error}") from error


def buffer(value: Any, what: str) -> bytes:
    """Bytes that are none of a file."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InputError(f'{what}: bytes are wanted, as b"\\xff", not {_kind(value)}')
    return bytes(value)


def integer(value: Any, what: str, least: int | None = None) -> int:
    """A whole number; True is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{what}: a whole number is wanted, not {_kind(value)}")
    if least is not None and value < least:
        raise InputError(f"{what}: {value} is less than {least}")
    return value


def too_long(digits: str) -> str:
    """Why digits are no number here, in words; "" where they are."""
    return f"a number of {len(digits):,} digits" if len(digits) > _MOST_DIGITS else ""


def number(digits: str, what: str, base: int = 10) -> int:
    """The value of digits; InputError for more of them than a number here can have (beyond 4,300 Python has none)."""
    if wrong := too_long(digits):
        raise InputError(f"{what}: {wrong}")
    return int(digits, base)


def toml_table(text: str) -> dict[str, Any]:
    """The keys of a TOML file's text; InputError for anything that is none, or that nobody reads to its end."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(str(error)) from error
    except RecursionError as error:
        raise InputError("arrays or tables in each other, too deep") from error
    except ValueError as error:  # of digits: beyond 4,300 Python reads none
        raise InputError("a number that is too long") from error
    left: list[Any] = [table]
    while left:
        one = left.pop()
        if isinstance(one, int) and one.bit_length() > _MOST_DIGITS * 4:
            raise InputError("a number that is too long")
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return table


def path(value: Any, what: str) -> Path:
    """A path, of a file that need not be there."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{what}: a path is wanted, not {_kind(value)}")
    if "\0" in os.fspath(value):
        raise InputError(f"{what}: {brief(str(value), room=60)}: embedded null byte")
    return Path(value)


def text(value: Any, what: str) -> str:
    """A string that can be told to a kernel."""
    if not isinstance(value, str):
        raise InputError(f"{what}: a string is wanted, not {_kind(value)}")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        told = brief(value, room=60)
        raise InputError(f"{what}: {told} holds half a character (a lone surrogate)") from None
    return value


def instance(value: Any, kind: type[_Kind] | tuple[type[_Kind], ...], what: str) -> _Kind:
    """An object of one class, or of one of several."""
    if isinstance(value, kind):
        return value
    wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
    raise InputError(f"{what}: {wanted} is wanted, not {_kind(value)}")


def member(value: Any, kind: type[_Member], what: str) -> _Member:
    """A member of an enumeration, or the value of one."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(one.value) for one in kind)
        raise InputError(f"{what}: {brief(value, room=60)} is not one of {known}") from None

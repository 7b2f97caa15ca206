"""The files that a command is asked to write: refused before any work is done, written whole, and named at the end."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kexecemu.errors import InputError
from kexecemu.files import replace_file
from kexecemu.visible import json_text, visible_line

__all__ = ["check_folder", "check_outputs", "print_json", "print_written", "write", "writing"]


def check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """InputError that names the option when a file cannot be written, or two outputs are the same one."""
    seen: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        if not path.name:
            raise InputError(f"{option} {str(path)!r}: is no name of a file")
        if wrong := _hindrance(path):
            raise InputError(f"{option} {path}: {wrong}")
        other = seen.setdefault(path.absolute(), option)
        if other != option:
            raise InputError(f"{other} and {option} are the same file: {path}")


def _hindrance(path: Path) -> str:
    """Why a file cannot be written; "" when it can."""
    folder = path.parent
    if path.is_dir():
        return "is a directory"
    if path.exists() and not path.is_file():  # it would be replaced, not written to: /dev/null by a file
        return "is no regular file"
    if not folder.is_dir():
        return f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}"
    # The file is made beside its final place, so it is the folder that has to be writable.
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"no permission to write into {folder}"


def check_folder(option: str, folder: Path | None) -> None:
    """A folder is made where there is none; InputError that names the option where none can be."""
    if folder is None:
        return
    above = next(one for one in (folder, *folder.parents) if one.exists())
    if not above.is_dir():
        what = "" if above == folder else f"{above} "
        raise InputError(f"{option} {folder}: {what}is not a folder")


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """What fails while a file is written is told in one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror or error}") from error


def write(option: str, path: Path | None, make: Callable[[], str]) -> list[Path]:
    """Write the text that is made, if a file was asked for: the files written. InputError where that cannot be."""
    if path is None:
        return []
    text = make()
    with writing(option, path):
        replace_file(path, text.encode())
    return [path]


def print_json(value: Mapping[str, Any], files: Sequence[Path] | None = None) -> None:
    """One JSON object, indented; with the key files for a command that writes some."""
    more = {} if files is None else {"files": [str(path) for path in files]}
    sys.stdout.write(json_text({**value, **more}, indent=2) + "\n")


def print_written(files: Sequence[Path]) -> None:
    """Name every file that was written, at the end of the account for people."""
    for path in files:
        print(f"written      {visible_line(str(path))}")

"""The files that a command is asked to write: refused before any work is done, written whole, and named at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from kexecemu.commands.streams import say_line
from kexecemu.errors import InputError
from kexecemu.files import file_identity, hindrance, is_shared, replace_file
from kexecemu.folders import folder_hindrance
from kexecemu.visible import json_text, visible_line

if TYPE_CHECKING:
    from kexecemu.scenario.options import Setup

__all__ = ["Written", "check_folder", "check_outputs", "input_files", "print_json", "print_or_write"]
__all__ += ["print_written"]

_BAD_INPUT = 2


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None] | None = None
) -> None:
    """InputError that names the option when a file cannot be written, is one of the inputs, or one of the others."""
    read = {file_identity(path): what for what, path in (inputs or {}).items() if path is not None}
    seen: dict[Any, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        if not path.name:
            raise InputError(f"{option} {str(path)!r}: is no name of a file")
        if wrong := hindrance(path):
            raise InputError(f"{option} {path}: {wrong}")
        same = file_identity(path)
        if same in read:
            raise InputError(f"{option} {path}: is an input, {read[same]}")
        other = seen.setdefault(same, option)
        if other != option and not is_shared(path):
            raise InputError(f"{other} and {option} are the same file: {path}")


def input_files(setup: Setup, scenario: Path | None = None) -> dict[str, Path]:
    """The files that decide a load, by the options that name them, and the scenario that it is of."""
    from kexecemu.fetch.cache import cached
    from kexecemu.fetch.targets import TARGETS
    from kexecemu.linux.fetched import FETCHED
    from kexecemu.scenario.options import OPTIONS

    found = {} if scenario is None else {"the scenario": scenario}
    for name, option in OPTIONS.items():
        value = str(getattr(setup, name))
        if not option.is_path or value in (*option.names, "None"):
            continue
        fetched = value.removeprefix(FETCHED)
        path = cached(fetched) if fetched != value and fetched in TARGETS else Path(value)
        if path is not None:
            found[option.flag] = path
    return found


def check_folder(
    option: str,
    folder: Path | None,
    names: Sequence[str] = (),
    others: Mapping[str, Path | None] | None = None,
) -> None:
    """A folder is made where there is none; InputError that names the option where none can be.

    names are patterns of what is written into it, which none of the others, inputs and outputs, may be.
    """
    if folder is None:
        return
    if wrong := folder_hindrance(folder):
        raise InputError(f"{option} {folder}: {wrong}")
    for other, path in (others or {}).items():
        if path is None or file_identity(path.parent) != file_identity(folder):
            continue
        if any(fnmatch(path.name, name) for name in names):
            raise InputError(f"{option} {folder}: would write over {path}, {other}")


class Written:
    """The files that a command has written so far, and what could not be: told when all else has been."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.failed: list[str] = []

    @contextmanager
    def writing(self, option: str, path: Path) -> Iterator[None]:
        """What fails while a file or a folder is written is kept, and the command goes on to its account."""
        try:
            yield
        except OSError as error:
            below = error.filename if error.filename not in (None, str(path)) else None
            self.failed.append(f"{option} {path}: {f'{below}: ' if below else ''}{error.strerror or error}")

    def write(self, option: str, path: Path | None, make: Callable[[], str | bytes]) -> None:
        """Write what is made, if a file was asked for."""
        if path is None:
            return
        made = make()
        with self.writing(option, path):
            # Half a character, of a path that is no text, is written as what it is.
            replace_file(path, made.encode("utf-8", "backslashreplace") if isinstance(made, str) else made)
            self.files.append(path)

    def exit(self, status: int = 0) -> NoReturn:
        """End the command: with a line for each file that is not there, and then with status 2."""
        for line in self.failed:
            say_line(line)
        raise typer.Exit(_BAD_INPUT if self.failed else status)


def print_or_write(text: str, out: Path | None) -> None:
    """A text on stdout, or in the file that --out asks for."""
    if out is None:
        sys.stdout.write(text)
        return
    check_outputs({"--out": out})
    written = Written()
    written.write("--out", out, lambda: text)
    print_written(written.files)
    written.exit()


def print_json(value: Mapping[str, Any], files: Sequence[Path] | None = None) -> None:
    """One JSON object, indented; with the key files for a command that writes some."""
    more = {} if files is None else {"files": [str(path) for path in files]}
    sys.stdout.write(json_text({**value, **more}, indent=2) + "\n")


def print_written(files: Sequence[Path]) -> None:
    """Name every file that was written, at the end of the account for people."""
    for path in files:
        print(f"written      {visible_line(str(path))}")

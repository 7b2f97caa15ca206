"""A series for Linux as edits: what purgatory/linux/ keeps, and how it gets into a source tree.

A patch quotes the lines around it, which are the kernel's. A series here holds nothing but our own lines, and says
where they go by a pattern that fits one line of the tree: so it also fits the next stable release. One TOML file is
one commit, in the order of their names; `versions` makes a file or an edit one for some versions of Linux only.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from kexecemu.arguments import toml_table
from kexecemu.data import purgatory_sources
from kexecemu.errors import InputError
from kexecemu.files import read_file, replacing
from kexecemu.guests.purgatory import chosen_options, files_of
from kexecemu.guests.unifdef import without_options

__all__ = ["Edit", "NewFile", "Step", "apply_series", "apply_step", "find_series", "read_series"]
__all__ += ["read_step", "series_path"]


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our lines into a file that the tree has, at the one line that a pattern fits.

    With `within` it is the first that fits from the first line on that `within` fits. `lines` come before or after it,
    or in its place with `replace`; or they close the file, with none of the three.
    """

    path: str
    lines: str
    before: str | None = None
    after: str | None = None
    replace: str | None = None
    within: str | None = None
    versions: tuple[str, ...] = ()


class NewFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the tree has not; `source` is its path below purgatory/, `executable` its mode."""

    path: str
    source: str
    executable: bool = False
    versions: tuple[str, ...] = ()


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One commit: its message, and what it does to the tree.

    `purgatory` names the options with which the purgatory's own sources are laid into arch/arm64/purgatory, in place of
    those of the step before: nothing of other options is in them. SHA-256 is the kernel's.
    """

    subject: str
    body: str
    purgatory: tuple[str, ...] | None = None
    new: tuple[NewFile, ...] = ()
    edit: tuple[Edit, ...] = ()
    versions: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """As git wants it."""
        return f"{self.subject}\n\n{self.body.strip()}\n"


_SHIPPED = ("purgatory", "protect")
_WITHOUT_GCS = ("6.12",)  # Linux knows guarded control stacks since 6.13


def series_path(name: str = "purgatory") -> Path:
    """The folder of a series that ships."""
    return purgatory_sources() / "linux" / name


def find_series(series: str) -> Path:
    """The folder of a series: one that ships, by its name, or any folder. InputError where there is none."""
    if not series:
        raise InputError("--series: a name is empty")
    folder = series_path(series) if series in _SHIPPED else Path(series)
    if not folder.is_dir():
        raise InputError(f"--series {series}: is no folder, nor the name of a series that ships")
    return folder


def read_series(series: Path, version: str) -> list[Step]:
    """The steps of a series for a version of Linux ("6.12"), in order; InputError for a file that is none."""
    paths = sorted(series.glob("*.toml"))
    if not paths:
        raise InputError(f"{series}: no series: it has no *.toml")
    steps = [step for step in map(read_step, paths) if _is_for(version, step.versions)]
    if not steps:
        raise InputError(f"{series.name}: no step of this series is for Linux {version}")
    return steps


def apply_series(series: Path, version: str, tree: Path) -> list[str]:
    """Apply a series to a source tree of a version of Linux; the subjects of its steps.

    InputError when a pattern fits no line or several, or a new file is there already. The tree is then half edited:
    make it anew, or ask git.
    """
    steps = read_series(series, version)
    for step in steps:
        apply_step(step, version, tree)
    return [step.subject for step in steps]


def apply_step(step: Step, version: str, tree: Path) -> None:
    """Apply one step to a source tree."""
    if step.purgatory is not None:
        _lay_purgatory(step.purgatory, tree / "arch/arm64/purgatory", gcs=version not in _WITHOUT_GCS)
    for new in step.new:
        if _is_for(version, new.versions):
            _create(new, tree)
    for edit in step.edit:
        if _is_for(version, edit.versions):
            _edit(edit, tree)


def read_step(path: Path) -> Step:
    """One file of a series; InputError for one that is none."""
    try:
        step = msgspec.convert(toml_table(read_file(path).decode()), Step)
        _check(step)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (InputError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InputError(f"{path}: {error}") from error
    return step


def _check(step: Step) -> None:
    """What a patch cannot hold, or a tree cannot have."""
    names = [
        *(new.path for new in step.new),
        *(new.source for new in step.new),
        *(edit.path for edit in step.edit),
    ]
    for what, text in (("subject", step.subject), *(("path", name) for name in names)):
        if not text or not text.isprintable() or len(text) > 250:
            raise InputError(f"{what} {text[:60]!r} is not one line of at most 250 printable characters")
    for edit in step.edit:
        for pattern in filter(None, (edit.before, edit.after, edit.replace, edit.within)):
            _compiled(pattern)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{pattern[:60]!r} is no pattern: {error}") from error


def _is_for(version: str, versions: Sequence[str]) -> bool:
    return not versions or version in versions


def _lay_purgatory(options: Sequence[str], folder: Path, *, gcs: bool) -> None:
    chosen = chosen_options(options)
    ours = ("sha256.c", "sha256.h", *(() if "sha2" in chosen else ("sha256-k.h",)))
    names = [name for name in files_of(chosen) if name not in ours]
    sources = {name: read_file(purgatory_sources() / name).decode() for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in without_options(sources, set(chosen), kernel=True, gcs=gcs).items():
        with replacing(folder / name) as file:
            file.write(text.encode())


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder; InputError for a path that leads out of it, by itself or by a link."""
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{name}: leads out of the tree")
    return path


def _create(new: NewFile, tree: Path) -> None:
    path, source = _inside(tree, new.path), _inside(purgatory_sources(), new.source)
    if path.exists():
        raise InputError(f"{new.path}: there already")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{new.path}: {error.strerror}") from error
    try:
        data = read_file(source)
    except OSError as error:
        raise InputError(f"{new.source}: {error.strerror}") from error
    with replacing(path) as file:
        file.write(data)
    path.chmod(0o755 if new.executable else 0o644)


def _edit(edit: Edit, tree: Path) -> None:
    path = _inside(tree, edit.path)
    try:
        lines = read_file(path).decode().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{edit.path}: {error.strerror}") from error
    start, end = _place(edit, lines)
    # A patch has whole lines.
    changed = [*(_whole(line) for line in lines[:start]), _whole(edit.lines), *lines[end:]]
    mode = path.stat().st_mode
    with replacing(path) as file:
        file.write("".join(changed).encode())
    path.chmod(mode & 0o777)


def _whole(text: str) -> str:
    return text if text.endswith("\n") or not text else f"{text}\n"


def _place(edit: Edit, lines: Sequence[str]) -> tuple[int, int]:
    """Which lines of the file ours replace: an empty stretch where they are put between two."""
    patterns = [(way, getattr(edit, way)) for way in ("before", "after", "replace") if getattr(edit, way)]
    if not patterns:
        return len(lines), len(lines)
    if len(patterns) > 1:
        raise InputError(f"{edit.path}: one of before, after and replace")
    [(way, pattern)] = patterns
    first = 0
    if edit.within is not None:
        first = next(_fitting(edit.within, lines, 0), -1)
        if first < 0:
            raise InputError(f"{edit.path}: no line fits {edit.within!r}")
    # Behind a `within` there may be others further down: the next one is meant.
    found = list(_fitting(pattern, lines, first))[: 1 if edit.within is not None else None]
    if len(found) != 1:
        raise InputError(f"{edit.path}: {len(found) or 'no'} lines fit {pattern!r}")
    [at] = found
    return {"before": (at, at), "after": (at + 1, at + 1), "replace": (at, at + 1)}[way]


def _fitting(pattern: str, lines: Sequence[str], first: int) -> Iterator[int]:
    fits = _compiled(pattern)
    return (at for at in range(first, len(lines)) if fits.search(lines[at].rstrip("\n")))

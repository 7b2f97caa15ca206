"""A series as patches for a mailing list, made of its edits and a source tree; and what checkpatch.pl says of them."""

import difflib
import itertools
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kexecemu.children import run_child
from kexecemu.errors import BuildError, InputError
from kexecemu.files import read_file
from kexecemu.folders import temporary_folder
from kexecemu.kbuild.series import Step, apply_step, read_series

__all__ = ["EXCEPTIONS", "Complaint", "Patch", "check_author", "checkpatch", "make_patches", "source_files"]

# What could end a header's line, or an address, is in neither.
_AUTHOR = re.compile(r"[^<>\s][^<>]* <[^<>@\s]+@[^<>@\s]+>")
_STAT_WIDTH = 80
_CHECKPATCH = ("scripts/checkpatch.pl", "scripts/spelling.txt", "scripts/const_structs.checkpatch")

EXCEPTIONS: Mapping[str, str] = {
    r"FILE_PATH_CHANGES": "arch/arm64 and tools/testing/selftests are in MAINTAINERS with all that is below them",
    r"CAMELCASE.*<(Elf_|Elf64_)": "types of linux/elf.h",
    r"CAMELCASE.*<(CurrentEL\w*|L\w+)>": "a system register of the architecture; labels of the assembler",
    r"COMMIT_ID": "Debian's source has no history to look it up in",
    r"el\.h.*BIT_MACRO": "for the assembler, too, which knows no UL",
    r"el\.h.*SPACING.*around that ':'": "labels of macros for the assembler, read as C",
}
"""What checkpatch --strict may say, as patterns of its lines, and why that stands."""


@dataclass(frozen=True)
class Patch:
    """One patch: the name of its file, and the whole text of the mail."""

    name: str
    text: str


@dataclass(frozen=True)
class Complaint:
    """A line of checkpatch's (patch:line: LEVEL:TYPE: words), and why it stands; "" where it should not."""

    line: str
    reason: str


def check_author(author: str) -> None:
    """InputError for one that is no name and address, as git am wants them."""
    if not author.isprintable() or not _AUTHOR.fullmatch(author):
        raise InputError(f"--author {author[:60]!r} is not a name and an address, as You <you@example.org>")


def source_files(
    series: Path, version: str, tarball: Path, *, check: bool, each: Callable[[], None] = lambda: None
) -> dict[str, bytes]:
    """What of linux-source's archive a series edits, by path; with check, checkpatch.pl and what that reads, too.

    Unpacking takes seconds, so it is done once for all; each is called for each file that was found. InputError for a
    series for another version, and for a file that is not there.
    """
    steps = read_series(series, version)
    ours = {new.path for step in steps for new in step.new}
    missing = {edit.path for step in steps for edit in step.edit} - ours | set(_CHECKPATCH if check else ())
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(tarball, "r|*") as archive:
            for member in archive if missing else ():
                path = member.name.partition("/")[2]
                content = archive.extractfile(member) if path in missing and member.isfile() else None
                if content is not None:
                    found[path] = content.read()
                    missing.remove(path)
                    each()
                    if not missing:
                        break
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{tarball}: is damaged: {error}") from error
    if missing:
        raise InputError(f"{tarball.name}: has no {min(missing)}")
    return found


def make_patches(
    series: Path, version: str, source: Mapping[str, bytes], author: str, base: str = ""
) -> list[Patch]:
    """The patches of a series for a version of Linux, in order, the cover letter first if it has one.

    source has the files that are edited, base the words for what they are of. author is a name and an address.
    InputError for a series that does not fit. No mail has a date: git am takes the moment.
    """
    check_author(author)
    steps = read_series(series, version)
    patches = []
    with temporary_folder("kexecemu-patches-") as tree:
        _lay(tree, {path: data for path, data in source.items() if path not in _CHECKPATCH})
        total = len(steps)
        before = _files(tree)
        whole: dict[str, str] = dict(before)
        for number, step in enumerate(steps, start=1):
            apply_step(step, version, tree)
            after = _files(tree)
            patches.append(_patch(step, number, total, author, before, after))
            before = after
    cover = series / "cover-letter.txt"
    if cover.is_file():
        subject, _, body = _text(cover.name, read_file(cover)).partition("\n\n")
        listed = "\n".join(f"  {step.subject}" for step in steps)
        base = f"base: {base or f'Linux {version}'}"
        head = _head(author, f"[PATCH 0/{total}] {subject}")
        text = f"{head}{body.rstrip()}\n\n{base}\n\n{listed}\n\n{_stat(whole, after)}\n"
        patches.insert(0, Patch("0000-cover-letter.patch", text))
    return patches


def checkpatch(
    patches: Sequence[Patch], source: Mapping[str, bytes], each: Callable[[], None] = lambda: None
) -> list[Complaint]:
    """What the source's own checkpatch.pl --strict says of each; BuildError where it cannot be run (it is in Perl).

    each is called before a patch: they take seconds.
    """
    complaints = []
    with temporary_folder("kexecemu-patches-") as tree:
        _lay(tree, {path: source[path] for path in _CHECKPATCH})
        for patch in patches:
            if patch.name.startswith("0000"):
                continue
            each()
            (tree / patch.name).write_text(patch.text)
            complaints += [Complaint(line, _reason(line)) for line in _complaints(tree, patch.name)]
    return complaints


def _complaints(tree: Path, name: str) -> Iterator[str]:
    command = [
        "perl",
        "scripts/checkpatch.pl",
        "--strict",
        "--no-tree",
        "--terse",
        "--show-types",
        "--showfile",
        name,
    ]
    try:
        done = run_child(command, cwd=tree, text=True, timeout=120)
    except OSError as error:
        raise BuildError(f"perl: {error.strerror}") from error
    if done.returncode and "total:" not in done.stdout:
        raise BuildError(f"checkpatch.pl: {done.stderr.strip() or 'said nothing'}")
    yield from (line for line in done.stdout.splitlines() if re.search(r": (ERROR|WARNING|CHECK):", line))


def _reason(line: str) -> str:
    return next((why for pattern, why in EXCEPTIONS.items() if re.search(pattern, line)), "")


def _lay(tree: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)


def _files(tree: Path) -> dict[str, str]:
    paths = sorted(path for path in tree.rglob("*") if path.is_file())
    names = ((path.relative_to(tree).as_posix(), path) for path in paths)
    return {name: _text(name, read_file(path)) for name, path in names}


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is no text in UTF-8, as a patch has it") from error


def _head(author: str, subject: str) -> str:
    return f"From: {author}\nSubject: {subject}\n\n"


def _patch(
    step: Step, number: int, total: int, author: str, before: Mapping[str, str], after: Mapping[str, str]
) -> Patch:
    diffs = "".join(_diff(path, before.get(path), text, step) for path, text in after.items())
    slug = re.sub(r"[^A-Za-z0-9]+", "-", step.subject).strip("-")[:52]
    body = f"{step.body.strip()}\n\nSigned-off-by: {author}\n---\n{_stat(before, after)}\n\n{diffs}--\n"
    subject = f"[PATCH {number}/{total}] {step.subject}"
    return Patch(f"{number:04}-{slug}.patch", _head(author, subject) + body)


def _diff(path: str, before: str | None, after: str, step: Step) -> str:
    if before == after:
        return ""
    mode = "100755" if any(new.path == path and new.executable for new in step.new) else "100644"
    head = f"diff --git a/{path} b/{path}\n" + (f"new file mode {mode}\n" if before is None else "")
    old = "/dev/null" if before is None else f"a/{path}"
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True), after.splitlines(keepends=True), old, f"b/{path}"
    )
    return head + "".join(lines)


def _stat(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """As git's --stat: a line for each file, how many lines in and out, and which files are new."""
    changed: dict[str, tuple[int, int]] = {}
    for path, text in after.items():
        old = before.get(path, "")
        if old != text or path not in before:
            lines = difflib.unified_diff(old.splitlines(), text.splitlines(), lineterm="", n=0)
            signs = [line[0] for line in itertools.islice(lines, 2, None)]
            changed[path] = (signs.count("+"), signs.count("-"))
    wide = max(map(len, changed), default=0)
    most = max(map(sum, changed.values()), default=0)
    digits = len(str(most))
    room = max(_STAT_WIDTH - wide - digits - 5, 10)
    told = [
        f" {path:<{wide}} | {sum(counts):>{digits}} {_graph(*counts, room, most)}".rstrip()
        for path, counts in changed.items()
    ]
    added, removed = (sum(column) for column in zip(*changed.values(), strict=True)) if changed else (0, 0)
    counts = [_counted(len(changed), "file", " changed")]
    counts += [_counted(added, "insertion", "(+)")] if added or not removed else []
    counts += [_counted(removed, "deletion", "(-)")] if removed or not added else []
    return "\n".join([*told, f" {', '.join(counts)}"])


def _counted(number: int, what: str, more: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}{more}"


def _graph(added: int, removed: int, room: int, most: int) -> str:
    """Signs for lines, so many to a sign that the longest of all fits into the room; one of each kind at least."""
    if most <= room:
        return "+" * added + "-" * removed

    def scaled(lines: int) -> int:
        return 1 + lines * (room - 1) // most if lines else 0

    signs = max(scaled(added + removed), bool(added) + bool(removed))
    plus = scaled(added) if added < removed else signs - scaled(removed)
    return "+" * plus + "-" * (signs - plus)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that can be put into the purgatory's C and assembly: one line, one change each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
BY_HAND = Path(__file__).with_name("by_hand.txt")

C_OPERATORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(?<![<>=!-])<(?![<=])", ("<=", ">")),
    (r"(?<![<>=!-])>(?![>=])", (">=", "<")),
    (r"<=", ("<",)),
    (r">=", (">",)),
    (r"==", ("!=",)),
    (r"!=", ("==",)),
    (r"&&", ("||",)),
    (r"\|\|", ("&&",)),
    (r"(?<![&])&(?![&=\w(])", ("|",)),
    (r"(?<!\|)\|(?![|=])", ("&",)),
    (r"<<", (">>",)),
    (r">>", ("<<",)),
    (r"(?<![+])\+(?![+=])", ("-",)),
    (r"(?<=[\w)] )-(?= )", ("+",)),
    (r"\+=", ("-=",)),
    (r"\|=", ("=", "&=")),
    (r"!(?=[\w(*])", ("",)),
    (r"(?<![\w.])\d+(?![\w.])", ("+1",)),
)
STATEMENT = re.compile(
    r"^\t+(?!return|break|continue|goto|case|default|u\d+ |int |const |struct |static )[\w*(][^{}]*;\s*(?:/\*.*\*/)?$"
)
ASM_SWAPS = {"b.eq": "b.ne", "b.ne": "b.eq", "b.hs": "b.lo", "cbz": "cbnz", "cbnz": "cbz", "eq": "ne"}
# Sources have one language by their name; of the headers these have code in it.
ASSEMBLY_HEADERS, C_HEADERS = ("el.h", "caller.h"), ("sysreg.h", "options.h", "record.h", "sha256.h")


@dataclass(frozen=True)
class Mutant:
    """A line of a source, and what it becomes."""

    path: str  # from the checkout's top
    function: str
    number: int  # of the line, from 1
    nth: int  # of the lines with this text in the function, from 1
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.old.strip()}  ->  {self.new.strip() or '(nothing)'}"

    @property
    def key(self) -> str:
        """What equivalent.txt knows it by: without the line's number, which changes."""
        name = self.function + (f" #{self.nth}" if self.nth > 1 else "")
        return "\t| ".join(
            " ".join(part.split()) for part in (Path(self.path).name, name, self.old, self.new)
        )


@dataclass(frozen=True)
class Line:
    """One of code: where it is, and its text."""

    path: str
    function: str
    number: int
    nth: int
    text: str

    def becomes(self, new: str) -> Mutant:
        return Mutant(self.path, self.function, self.number, self.nth, self.text, new)


def code_lines(path: str, text: str) -> Iterator[Line]:
    """Lines outside of comments and of the preprocessor's own."""
    comment = False
    function = ""
    seen: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if comment or stripped.startswith("/*"):
            comment = "*/" not in stripped
            continue
        begins = re.match(
            r"\t\.macro\t(\w+)|([A-Za-z_]\w*):|#define (\w+)\(|(?:\w.*?[ *])?(\w+)\([^;]*$", line
        )
        if begins:
            function = next(name for name in begins.groups() if name)
        if stripped and not stripped.startswith(("#", "//")):
            seen[function, stripped] += 1
            yield Line(path, function, number, seen[function, stripped], line)


def of_c(line: Line) -> Iterator[Mutant]:
    body = re.split(r"\s*/\*|\s*//", line.text)[0]
    if (
        "__asm__" in body
        or ("sizeof" in body and "=" not in body)
        or re.match(r"\s*(extern|static const u32)", body)
    ):
        return
    quoted = [match.span() for match in re.finditer(r'"[^"]*"', body)]
    for pattern, news in C_OPERATORS:
        for match in re.finditer(pattern, body):
            if any(start <= match.start() < end for start, end in quoted):
                continue
            for new in news:
                changed = str(int(match[0]) + 1) if new == "+1" else new
                yield line.becomes(body[: match.start()] + changed + body[match.end() :])
    if STATEMENT.match(body):
        yield line.becomes(re.match(r"\t*", body)[0] + ";")  # type: ignore[index]


def of_assembly(line: Line) -> Iterator[Mutant]:
    body = line.text.split("//")[0].rstrip()
    match = re.match(r"([\w.\\@]+:)?\t(\w[\w.]*)(?:[\t ](.*))?$", body)
    if match is None or "(" in match[2]:
        return
    label, operation, operands = match[1] or "", match[2], match[3] or ""
    yield line.becomes(f"{label}\tnop")
    if operation in ASM_SWAPS:
        yield line.becomes(f"{label}\t{ASM_SWAPS[operation]}\t{operands}")
    number_in = re.search(r"#(\d+)\b", operands)
    if number_in:
        other = operands.replace(number_in[0], f"#{int(number_in[1]) ^ 16}", 1)
        yield line.becomes(f"{label}\t{operation}\t{other}")


def mutants() -> list[Mutant]:
    """All of them, in the order of the sources."""
    found: dict[Mutant, None] = {}
    for source in sorted((ROOT / "purgatory").glob("*.[cSh]")):
        in_c = source.suffix == ".c" or source.name in C_HEADERS
        in_assembly = source.suffix == ".S" or source.name in ASSEMBLY_HEADERS
        for line in code_lines(str(source.relative_to(ROOT)), source.read_text()):
            # What is for the assembler in a header is between .macro and .endm, and no C.
            macro = source.suffix == ".S" or (line.text.startswith(("\t.", "\t")) and "(" not in line.text)
            if in_assembly and macro and not line.text.rstrip().endswith((";", "\\", "{", "}")):
                found |= dict.fromkeys(of_assembly(line))
            elif in_c:
                found |= dict.fromkeys(of_c(line))
    return [one for one in found if one.old != one.new]


def rows_of(path: Path, columns: int) -> list[list[str]]:
    """Of a text with a row a line, its columns parted by a bar between blanks that stands in no C: a tab before it."""
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = [line.split("\t| ") for line in lines if line and not line.startswith("#")]
    if wrong := [row for row in rows if len(row) != columns]:
        raise SystemExit(f"{path.name}: not {columns} columns: {wrong[0]}")
    return rows


def by_hand() -> list[Mutant]:
    """Faults of kinds that once went unnoticed."""
    found = []
    for name, old, new in rows_of(BY_HAND, 3):
        source = ROOT / "purgatory" / name
        lines = [
            line
            for line in code_lines(f"purgatory/{name}", source.read_text())
            if re.split(r"\s*/\*", line.text)[0].strip() == old
        ]
        if not lines:
            raise SystemExit(f"{BY_HAND.name}: no such line in {name}: {old}")
        found.append(lines[0].becomes("\t" + new))
    return found


def equivalents() -> dict[str, str]:
    """Mutants that no run can tell from the original, by their keys: the reason."""
    rows = rows_of(EQUIVALENT, 5)
    return {"\t| ".join(" ".join(part.split()) for part in row[:4]): row[4] for row in rows}

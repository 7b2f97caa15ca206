"""Keep README and docs/ true: make anew what the marks in them say.

    python .ci/outputs.py                  write what is no longer so
    python .ci/outputs.py --check          only say what is not as it should be (exit 1)
    python .ci/outputs.py --test-command   print the set-up command that ends with the tests; --run-command the other

A mark is a comment above the block that it is about:

    output: COMMAND         a text block: what the command prints
    table: NAME             what stands up to the mark `end`: one of the tables of this file
    file: PATH              a block: a file of this repository, in full
    picture: SCENARIO       an image: the memory picture of that run's report

Behind an output's command, each with a semicolon before it: `from TEXT` for what comes from the first line with TEXT in
it on, `to TEXT` for what comes before the first line behind that with TEXT in it, `without TEXT` to leave the lines
with TEXT in them out, `fold A B` for the first A and the last B lines. All commands of a page run in one folder, which
is empty at first. What needs files that are not fetched here is left as it is. A real kernel is another one after
each of Debian's updates, so the check takes the output of one for the same when only numbers differ; and kexecemu's own
version is another one after each change to it, so it is left out.

A mark `needs: NAME ...` above a block of README's commands says what has to have been fetched for them, or is a program
that has to be there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
sys.path.insert(0, str(ROOT))

_SETUP = re.compile(r"<!-- (?P<name>run|test) -->\n```sh\n(?P<command>.*?)\n```", re.DOTALL)
_COMMANDS = re.compile(r"(?:<!-- (?P<mark>[^>]+) -->\n)?```sh\n(?P<lines>.*?)\n```", re.DOTALL)
_MARK = re.compile(
    r"<!-- (?P<verb>output|file|picture|table): (?P<what>[^>]+) -->\n"
    r"(?:```\w+\n(?P<block>.*?)```\n|!\[[^\]]*\]\((?P<image>[^)]+)\)\n|(?P<table>.*?)<!-- end -->\n)",
    re.DOTALL,
)
_CLASS = re.compile(r"\.([a-z][\w-]*)")
_MARGIN = 8
_VERSION = re.compile(r"\bkexecemu \S+\+[0-9a-f]{8}\b")


# -- what has been fetched -------------------------------------------------------------------------------------------


def missing(names: list[str]) -> list[str]:
    """Those of the names that are neither fetched nor a program here."""
    from kexecemu.fetch.cache import cached
    from kexecemu.fetch.targets import TARGETS

    return [
        name
        for name in names
        if (cached(name) is None if name in TARGETS else shutil.which(name, path=_path()) is None)
    ]


def _path() -> str:
    """Where programs are looked for: beside this Python first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


# -- tables that are not the output of a command ---------------------------------------------------------------------


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _scenarios() -> str:
    from kexecemu.data import shipped_scenarios
    from kexecemu.scenario.read import find_scenario, read_scenario

    rows = []
    for name in shipped_scenarios():
        scenario = read_scenario(find_scenario(name))
        outcome = scenario.expect.outcome.value if scenario.expect else "-"
        rows.append([f"`{name}`", f"`{outcome}`", scenario.name])
    return _table(["name", "outcome", "what happens"], rows)


def _models() -> str:
    from kexecemu.stray.models import model_rows

    rows = []
    for row in model_rows():
        length = str(row.shortest) if row.shortest == row.longest else f"{row.shortest} to {row.longest}"
        rows.append([f"`{row.name}`", f"{row.variants:,}", length, f"{row.summary} *After {row.source}.*"])
    return _table(["model", "kinds", "bytes", "what it does"], rows)


def _fetch() -> str:
    from kexecemu.fetch.targets import TARGETS

    return _table(["name", "what it is"], [[f"`{name}`", one.summary] for name, one in TARGETS.items()])


def _outcomes() -> str:
    from kexecemu.crash.outcome import Outcome

    return _table(["outcome", "what happened"], [[f"`{one.value}`", one.meaning] for one in Outcome])


def _board() -> str:
    """Where the board's devices are and which interrupts they raise, from the board itself."""
    from kexecemu.machine import virt
    from kexecemu.machine.board import Board
    from kexecemu.machine.devices.gic import Gic2
    from kexecemu.machine.devices.gic3 import Gic3

    with Board("1G") as board, Board("1G", gic=3) as other:
        assert isinstance(board.gic, Gic2) and isinstance(other.gic, Gic3)
        rows = [
            (board.gic.distributor(0).phys, "", "GIC distributor"),
            (board.gic.cpu_interface(0).phys, "", "GICv2 CPU interface"),
            (other.gic.redistributors.phys, "", "GICv3 redistributors, 128 KiB a CPU"),
            (board.uart.phys, f"{virt.UART_SPI}", "PL011 UART"),
            (board.rtc.phys, f"{virt.RTC_SPI}", "PL031 real-time clock"),
            (board.virtio.phys, f"{virt.VIRTIO_SPI} on", "virtio-mmio, 32 slots of 512 bytes"),
            *((bank, "", "RAM, here 1 GiB") for bank in board.ram.banks),
        ]
        table = [[f"`{phys.start:#010x}-{phys.last:#010x}`", irq, name] for phys, irq, name in rows]
    table.append(
        ["system registers", f"{virt.TIMER_VIRTUAL_PPI}, {virt.TIMER_PHYSICAL_PPI}", "generic timer"]
    )
    table.append(["HVC", "", "PSCI 1.0"])
    return _table(["physical addresses", "interrupt", "what is there"], table)


# Lines of code of arch/*/purgatory in Linux 7.3.4 (.c, .S and .h, counted as ours are): linux-source-7.3 of Debian.
_OTHERS = {"x86": 145, "s390": 226, "riscv": 57}


def _purgatories() -> str:
    """What options cost: the purgatory with more and more of them, built here, and others."""
    from kexecemu.commands.purgatory import describe_purgatory
    from kexecemu.commands.purgatory_build import describe_build
    from kexecemu.fetch.cache import cached
    from kexecemu.formats.elfrel import object_or_embedded
    from kexecemu.guests.purgatory import OPTIONS, build_purgatory, code_lines
    from kexecemu.kernel.image.purgatory import parse_purgatory
    from kexecemu.scenario.purgatory_bench import instructions_per_byte

    def row(name: str, lines: str, path: Path, data: bytes) -> list[str]:
        obj = parse_purgatory(data)
        found = describe_purgatory(obj)
        each = instructions_per_byte(path, obj, found["interface"])
        return [name, lines, f"{len(data):,}", f"{found['bufsz']:,}", f"{found['memsz']:,}", f"{each:.2f}"]

    sha256 = sum(
        code_lines((ROOT / "purgatory" / name).read_text()) for name in ("sha256.c", "sha256.h", "sha256-k.h")
    )
    rows = []
    with tempfile.TemporaryDirectory(prefix="outputs-") as folder:
        for name, options in {
            "core": (),
            "core and caches": ("caches",),
            "core, caches and sha2": ("caches", "sha2"),
            "all options": tuple(OPTIONS),
        }.items():
            data = build_purgatory(options)
            path = Path(folder) / "built.ro"
            path.write_bytes(data)
            lines = describe_build(options, data)["code_lines"] - sha256
            rows.append(row(name, f"{lines:,}", path, data))
        kexec = cached("kexec-tools")
        assert kexec is not None  # see Mark.missing
        rows.append(row("kexec-tools'", "", kexec, object_or_embedded(kexec.read_bytes())))
    rows += [[f"Linux 7.3, {name}", str(lines), "", "", "", ""] for name, lines in _OTHERS.items()]
    head = ["purgatory", "lines of code without SHA-256", "object, bytes", "loaded", "in memory"]
    return _table([*head, "instructions a byte"], rows)


def _eras() -> str:
    """What changed when, with what a rule is about in the words of its own documentation."""
    from kexecemu.kernel.base.changes import CHANGES, Rules

    assert Rules.__doc__ is not None
    meanings: dict[str, str] = {}
    for line in Rules.__doc__.splitlines():
        if found := re.match(r"    (\w+)  +(.*)", line):
            last = found[1]
            meanings[last] = found[2]
        elif meanings and line.strip():
            meanings[last] += f" {line.strip()}"
    rows, now = [], Rules()
    for one in CHANGES:
        values = [_value(getattr(now, one.rule)), _value(one.value)]
        now = replace(now, **{one.rule: one.value})
        release = ".".join(map(str, one.since))
        rows.append([release, meanings[one.rule], " → ".join(values), one.source])
    return _table(["since", "what", "was → is", "commit, or where it was seen"], rows)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(f"`{one}`" for one in value)
    return f"{value:#x}" if isinstance(value, int) and value in (0x7, 0xF, 0x3F) else str(value)


def _limits() -> str:
    from kexecemu.limits import LIMITS

    rows = [[one.name, one.meaning, "a warning" if one.asked else ""] for one in LIMITS]
    return _table(["what", "of it", "asked for"], rows)


_TABLES: dict[str, Callable[[], str]] = {
    "eras": _eras,
    "purgatories": _purgatories,
    "scenarios": _scenarios,
    "models": _models,
    "fetch": _fetch,
    "outcomes": _outcomes,
    "board": _board,
    "limits": _limits,
}


# -- marks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A mark on a page: the verb and what it is about; old is what stands below it now, image the picture's path."""

    page: Path
    verb: str
    what: str
    old: str
    image: Path | None

    @property
    def real(self) -> bool:
        """A real kernel runs there: Debian's, as it is now."""
        return "run debian-" in self.what or "run linux-" in self.what

    @property
    def slow(self) -> bool:
        """It takes seconds."""
        return self.what.startswith(
            ("kexecemu campaign", "kexecemu purgatory check", "kexecemu replay", "purgatories")
        )

    @property
    def missing(self) -> list[str]:
        """What it needs and has not been fetched here."""
        needs = ["kernel", "busybox"] if self.real else []
        if self.verb == "output" and ("kexec" in self.what.split() or "run linux-" in self.what):
            needs.append("kexec-tools")
        if self.what == "purgatories":
            needs.append("kexec-tools")
        if self.what.startswith(("purgatories", "kexecemu purgatory build")):
            clang = importlib.util.find_spec("ziglang")
            return [*([] if clang else ["ziglang"]), *missing(needs)]
        return missing(needs)

    def made(self, folder: Path) -> str:
        """What should stand there, made in a folder."""
        if self.verb == "file":
            return (ROOT / self.what).read_text(encoding="utf-8")
        if self.verb == "picture":
            return picture(self.what)
        if self.verb == "table":
            return f"\n{_TABLES[self.what]()}\n"
        return output_of(self.what, folder)

    def same(self, made: str) -> bool:
        """What stands there will do for what was made."""
        return made == self.old or (self.real and _words(made) == _words(self.old))


def pages() -> list[Path]:
    """README and the pages of docs/, sorted."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def _mark(page: Path, match: re.Match[str]) -> Mark:
    image = page.parent / match["image"] if match["image"] else None
    old = match["block"] or match["table"] or ""
    if image is not None:
        old = image.read_text(encoding="utf-8") if image.is_file() else ""
    return Mark(page, match["verb"], match["what"], old, image)


def marks(page: Path) -> Iterator[Mark]:
    """The marks of a page in their order."""
    for match in _MARK.finditer(page.read_text(encoding="utf-8")):
        yield _mark(page, match)


def _words(output: str) -> list[str]:
    """Its words, those with a digit in them all alike."""
    return ["#" if any(one.isdigit() for one in word) else word for word in output.split()]


def _cut(lines: list[str], words: list[str]) -> list[str]:
    """What the words of a mark leave of an output."""
    for word in words:
        verb, _, text = word.partition(" ")
        if verb == "from":
            lines = lines[next(number for number, line in enumerate(lines) if text in line) :]
        elif verb == "to":
            lines = lines[: next(number for number, line in enumerate(lines) if number and text in line)]
        elif verb == "without":
            lines = [line for line in lines if text not in line]
        else:
            assert verb == "fold", word
            first, last = map(int, text.split())
            left = len(lines) - first - last
            lines = [*lines[:first], f"... {left:,} lines ...\n", *lines[-last:]]
    return lines


def _environment(**more: str) -> dict[str, str]:
    """The environment in which this checkout's kexecemu runs."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def output_of(marked: str, folder: Path) -> str:
    """What a marked command prints when it is run in a folder."""
    command, *words = marked.split("; ")
    program, *arguments = shlex.split(command)
    assert program == "kexecemu", command
    from kexecemu.fetch.cache import cached

    arguments = [str(cached("kexec-tools")) if one == "kexec" else one for one in arguments]
    run = [sys.executable, "-m", "kexecemu", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, cwd=folder, env=_environment(COLUMNS="80"))
    if done.returncode:
        raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stderr}")
    lines = _cut(done.stdout.splitlines(keepends=True), words)
    return "".join(_VERSION.sub("kexecemu VERSION", line).rstrip() + "\n" for line in lines)


def renew(page: Path) -> list[str]:
    """Make a page's marks anew; returns those that were not as they should be."""
    wrong: list[str] = []

    def fresh(match: re.Match[str]) -> str:
        mark = _mark(page, match)
        if mark.missing:
            return match[0]
        made = mark.made(Path(folder))
        if mark.same(made):
            return match[0]
        wrong.append(f"{page.relative_to(ROOT)}: {mark.verb}: {mark.what}")
        if mark.image is not None:
            mark.image.write_text(made, encoding="utf-8")
            return match[0]
        group = "table" if mark.verb == "table" else "block"
        start, end = match.start(group) - match.start(), match.end(group) - match.start()
        return match[0][:start] + made + match[0][end:]

    with tempfile.TemporaryDirectory(prefix="outputs-") as folder:
        new = _MARK.sub(fresh, page.read_text(encoding="utf-8"))
    page.write_text(new, encoding="utf-8")
    return wrong


def check(page: Path) -> list[str]:
    """The marks of a page that are not as they should be."""
    with tempfile.TemporaryDirectory(prefix="outputs-") as folder:
        return [
            f"{page.relative_to(ROOT)}: {mark.verb}: {mark.what}"
            for mark in marks(page)
            if not mark.missing and not mark.same(mark.made(Path(folder)))
        ]


# -- the picture -----------------------------------------------------------------------------------------------------


def picture(scenario: str) -> str:
    """The memory picture of a run's report as an SVG file of its own, with the report's rules for what is in it."""
    from kexecemu.report.html import render
    from kexecemu.testing import run_result

    result = run_result(scenario)
    document = render(result).replace(" The tables below hold the same facts.", "")
    result.kernel.board.close()
    drawn = re.search(r'<svg class="picture"(?P<rest>.*?</svg>)', document, re.DOTALL)
    style = re.search(r"<style>(.*?)</style>", document, re.DOTALL)
    assert drawn and style
    classes = {name for names in re.findall(r'class="([^"]+)"', drawn[0]) for name in names.split()}
    box = re.search(r'viewBox="0 0 (\S+) (\S+)"', drawn["rest"])
    assert box
    # The page's margin becomes the file's own.
    width, height = float(box[1]) + 2 * _MARGIN, float(box[2]) + _MARGIN
    view = f'viewBox="-{_MARGIN} -{_MARGIN} {width:g} {height:g}"'
    rules = "\n".join(_rules(style[1], classes | {"picture"}))
    font = '.picture { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }'
    paper = f'<rect x="-{_MARGIN}" y="-{_MARGIN}" width="100%" height="100%" fill="var(--paper)"/>'
    rest = drawn["rest"].replace(box[0], view)
    rest = rest.replace("<defs>", f"<style>\n{rules}\n{font}\n</style>\n{paper}\n<defs>", 1)
    size = f'width="{width:g}" height="{height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" {size}{rest}\n'


def _rules(style: str, classes: set[str]) -> Iterator[str]:
    """The rules of a style sheet that set colours' names or are about one of the classes."""
    for rule in re.findall(r"(?:@media[^{]+\{(?:[^{}]*\{[^{}]*\})*\s*\}|[^{}@]+\{[^{}]*\})", style):
        selectors, _, body = rule.strip().partition("{")
        if selectors.startswith("@media"):
            if "prefers-color-scheme" in selectors:
                yield rule.strip()
            continue
        kept = [
            one.strip()
            for one in selectors.split(",")
            if one.strip() == ":root"
            # The picture's own size is its file's, not the page's.
            or (one.strip() != ".picture" and (names := set(_CLASS.findall(one))) and names <= classes)
        ]
        if kept:
            yield f"{', '.join(kept)} {{{body}"


# -- commands --------------------------------------------------------------------------------------------------------


def setup_command(name: str) -> str:
    """The set-up command of README that is marked `run` or `test`."""
    text = README.read_text(encoding="utf-8")
    commands = {match["name"]: match["command"] for match in _SETUP.finditer(text)}
    return commands[name]


def command_blocks(page: Path = README) -> list[tuple[str, list[str]]]:
    """The blocks of commands of a page but for the set-up, each with what it needs."""
    found = []
    for match in _COMMANDS.finditer(page.read_text(encoding="utf-8")):
        mark = match["mark"] or ""
        if mark not in ("run", "test"):
            needs = mark.removeprefix("needs: ").split() if mark.startswith("needs: ") else []
            found.append((match["lines"], needs))
    return found


def run_commands(lines: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block of commands as a shell would, this checkout's kexecemu first in PATH."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    program = programs / "kexecemu"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kexecemu "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(programs), _path()])
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", lines],
        cwd=folder,
        env=_environment(PATH=path),
        capture_output=True,
        text=True,
    )


def main() -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:]
    for name in ("run", "test"):
        if f"--{name}-command" in arguments:
            print(setup_command(name))
            return 0
    if "--check" in arguments:
        wrong = [line for page in pages() for line in check(page)]
        for line in wrong:
            print(f"{line}: not what is made today; run python .ci/outputs.py", file=sys.stderr)
        return int(bool(wrong))
    for page in pages():
        for line in renew(page):
            print(f"{line}: made anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Keep README's outputs true: run what the marks say and put the real output below them.

`python .ci/readme.py` rewrites README.md, `--check` only says whether it is as it should be (exit 1 if not).

A mark is `output: COMMAND`, and behind it, each with a semicolon before it: `from TEXT` for what comes from the first
line with TEXT in it on, `to TEXT` for what comes before the first line behind that with TEXT in it, `without TEXT` to
leave the lines with TEXT in them out, `fold A B` for the first A and the last B lines. All commands run in one folder,
which is empty at first. What needs files that are not fetched here is left as it is. A real kernel is another one after
each of Debian's updates, so the check takes the output of one for the same when only numbers differ; and kexecemu's own
version is another one after each change to it, so it is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
_CACHE = Path(
    os.environ.get("KEXECEMU_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kexecemu"
)
_KEXEC = next(_CACHE.glob("kexec-tools/**/kexec"), None)  # fixtures/fetch.py kexec-tools
_KERNEL = next(_CACHE.glob("kernel/boot/vmlinuz-*"), None)
_BUSYBOX = next(_CACHE.glob("busybox/**/busybox"), None)
_BLOCK = re.compile(r"(<!-- output: (?P<command>[^>]+) -->\n```text\n)(?P<output>.*?)(```\n)", re.DOTALL)
_VERSION = re.compile(r"\bkexecemu \S+\+[0-9a-f]{8}\b")
_SETUP = re.compile(r"<!-- (?P<name>run|test) -->\n```sh\n(?P<command>.*?)\n```", re.DOTALL)


def setup_command(name: str) -> str:
    """The set-up command of README that is marked `run` or `test`."""
    commands = {match["name"]: match["command"] for match in _SETUP.finditer(README.read_text())}
    return commands[name]


def _scenarios() -> str:
    from kexecemu.scenario.schema import find_scenario, read_scenario, shipped_scenarios

    lines = []
    for name in shipped_scenarios():
        scenario = read_scenario(find_scenario(name))
        outcome = scenario.expect.outcome.value if scenario.expect else "-"
        lines.append(f"{name:<32} {outcome:<10} {scenario.name}\n")
    return "".join(lines)


def _models() -> str:
    from kexecemu.campaign.models import model_rows

    lines = []
    for row in model_rows():
        length = str(row.shortest) if row.shortest == row.longest else f"{row.shortest} to {row.longest}"
        lines.append(f"{row.name:<15} {row.variants:>6,} {length:>10}  {row.summary}\n")
        lines.append(f"{'':<33}  after {row.source}\n")
    return f"{'model':<15} {'kinds':>6} {'bytes':>10}\n" + "".join(lines)


_TABLES: dict[str, Callable[[], str]] = {"scenarios": _scenarios, "models": _models}


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


def output_of(marked: str, folder: Path) -> str:
    """What a marked command prints when it is run in a folder."""
    command, *words = marked.split("; ")
    if command in _TABLES:
        return _TABLES[command]()
    program, *arguments = shlex.split(command)
    assert program == "kexecemu", command
    arguments = [str(_KEXEC) if one == "kexec" else one for one in arguments]
    run = [sys.executable, "-m", "kexecemu", *arguments]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    lines = _cut(done.stdout.splitlines(keepends=True), words)
    return "".join(_VERSION.sub("kexecemu VERSION", line).rstrip() + "\n" for line in lines)


def _real(command: str) -> bool:
    """A real kernel runs there: Debian's, as it is now."""
    return "run debian-" in command or "run linux-" in command


def _missing(command: str) -> bool:
    """Something that it needs has not been fetched here."""
    if "kexec" in command.split() or "run linux-" in command:
        return _KEXEC is None or (_real(command) and (_KERNEL is None or _BUSYBOX is None))
    return _real(command) and (_KERNEL is None or _BUSYBOX is None)


def _words(output: str) -> list[str]:
    """Its words, those with a digit in them all alike."""
    return ["#" if any(one.isdigit() for one in word) else word for word in output.split()]


def renewed(text: str, *, numbers: bool = False) -> str:
    """README's text with every marked output made anew; with numbers those too that only a new kernel changes."""

    def fresh(match: re.Match[str]) -> str:
        command = match["command"]
        if _missing(command):
            return match[0]
        output = output_of(command, Path(folder))
        if _real(command) and not numbers and _words(output) == _words(match["output"]):
            output = match["output"]
        return match[1] + output + match[4]

    with tempfile.TemporaryDirectory(prefix="readme-") as folder:
        return _BLOCK.sub(fresh, text)


def main() -> int:
    text = README.read_text()
    if "--test-command" in sys.argv[1:]:
        print(setup_command("test"))
        return 0
    if "--check" in sys.argv[1:]:
        same = renewed(text) == text
        if not same:
            print(
                "README.md: outputs are not what the commands print; run python .ci/readme.py",
                file=sys.stderr,
            )
        return int(not same)
    README.write_text(renewed(text, numbers=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Keep README's outputs true: run what the marks say and put the real output below them.

`python .ci/readme.py` rewrites README.md, `--check` only says whether it is as it should be (exit 1 if not).

A mark is `output: COMMAND`, or `output: COMMAND; from TEXT` for what comes from the first line with TEXT in it on. What
needs files that are not fetched here is left as it is. A real kernel is another one after each of Debian's updates, so
the check takes the output of one for the same when only numbers differ.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
_CACHE = Path(
    os.environ.get("KEXECEMU_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kexecemu"
)
_KEXEC = next(_CACHE.glob("kexec-tools/**/kexec"), None)  # fixtures/fetch.py kexec-tools
_KERNEL = next(_CACHE.glob("kernel/boot/vmlinuz-*"), None)
_BUSYBOX = next(_CACHE.glob("busybox/**/busybox"), None)
_BLOCK = re.compile(r"(<!-- output: (?P<command>[^>]+) -->\n```text\n)(?P<output>.*?)(```\n)", re.DOTALL)
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


def output_of(command: str) -> str:
    """What a marked command prints."""
    if command == "scenarios":
        return _scenarios()
    command, _, start = command.partition("; from ")
    program, *arguments = shlex.split(command)
    assert program == "kexecemu", command
    arguments = [str(_KEXEC) if one == "kexec" else one for one in arguments]
    run = [sys.executable, "-m", "kexecemu", *arguments]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if start in line)
    return "".join(line.rstrip() + "\n" for line in lines[first:])


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
        output = output_of(command)
        if _real(command) and not numbers and _words(output) == _words(match["output"]):
            output = match["output"]
        return match[1] + output + match[4]

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

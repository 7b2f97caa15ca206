"""Keep README's outputs true: run what the marks say and put the real output below them.

`python .ci/readme.py` rewrites README.md, `--check` only says whether it is as it should be (exit 1 if not).
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
    program, *arguments = shlex.split(command)
    assert program == "kexecemu", command
    arguments = [str(_KEXEC) if one == "kexec" else one for one in arguments]
    run = [sys.executable, "-m", "kexecemu", *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def renewed(text: str) -> str:
    """README's text with every marked output made anew."""

    def fresh(match: re.Match[str]) -> str:
        if _KEXEC is None and "kexec" in match["command"].split():
            return match[0]  # kexec-tools' program has not been fetched here
        return match[1] + output_of(match["command"]) + match[4]

    return _BLOCK.sub(fresh, text)


def main() -> int:
    text = README.read_text()
    fresh = renewed(text)
    if "--check" in sys.argv[1:]:
        if fresh != text:
            print(
                "README.md: outputs are not what the commands print; run python .ci/readme.py",
                file=sys.stderr,
            )
        return int(fresh != text)
    if "--test-command" in sys.argv[1:]:
        print(setup_command("test"))
        return 0
    README.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())

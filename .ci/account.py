"""What CI's test runs really did: which tests were skipped and why, and how many ran against what nobody here wrote.

As a pytest plugin (`PYTEST_ADDOPTS="-p account"`, this folder in PYTHONPATH) it adds what a run did to the file that
KEXECEMU_ACCOUNT names: one JSON object a run. `python .ci/account.py check FILE` reads all of them, prints the account,
and ends with 1 when a test was skipped that account.toml does not name with a reason, or when fewer tests than are
committed there ran against real kernels or used a real tool. A tool counts for a test when the test has started it as
a process; that it might have is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

_LIST = Path(__file__).with_name("account.toml")
_PROPERTY = "kexecemu-tools"
# Where the arm64 builds of the dump tools are started by a loader: the words behind it count as well.
_WORDS = 6


def _expected() -> dict[str, Any]:
    return tomllib.loads(_LIST.read_text())


class _Watch:
    """Which of the tools that account.toml names the running test has started."""

    def __init__(self) -> None:
        self._tools = set(_expected()["tools"])
        self.seen: set[str] = set()
        start = subprocess.Popen.__init__

        def watched(process: Any, args: Any, *more: Any, **keywords: Any) -> None:
            words = [args] if isinstance(args, (str, os.PathLike)) else list(args)
            named = [os.fsdecode(word) for word in words[:_WORDS]]
            # A word that is no path is a command of somebody else's: `kexecemu crash` is no run of crash.
            names = {Path(word).name for word in (*named[:1], *(word for word in named if "/" in word))}
            self.seen |= names & self._tools
            start(process, args, *more, **keywords)

        subprocess.Popen.__init__ = watched  # type: ignore[method-assign]


class _Account:
    """One run's, where the reports of all workers come together."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.skipped: dict[str, str] = {}
        self.tools: dict[str, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.append(report.nodeid)
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped[report.nodeid] = str(
                report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            )
        for name, value in report.user_properties:
            if name == _PROPERTY:
                for tool in str(value).split():
                    self.tools.setdefault(tool, set()).add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped[report.nodeid] = str(
                report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            )

    def pytest_sessionfinish(self) -> None:
        row = {
            "passed": sorted(self.passed),
            "skipped": self.skipped,
            "tools": {tool: sorted(tests) for tool, tests in sorted(self.tools.items())},
        }
        with open(os.environ["KEXECEMU_ACCOUNT"], "a") as file:
            file.write(json.dumps(row) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if "KEXECEMU_ACCOUNT" not in os.environ:
        return
    config.stash[_KEY] = _Watch()
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Account(), "kexecemu-account")


_KEY = pytest.StashKey[_Watch]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Any:
    """The last phase of a test: all that it has started is known now, its fixtures' tools included."""
    try:
        return (yield)
    finally:
        watch = item.config.stash.get(_KEY, None)
        if watch is not None and watch.seen:
            item.user_properties.append((_PROPERTY, " ".join(sorted(watch.seen))))
            watch.seen = set()


def check(path: Path) -> list[str]:
    """Print the account; what is wrong with it, in lines."""
    expected = _expected()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    passed = {test for row in rows for test in row["passed"]}
    tools: dict[str, set[str]] = {}
    for row in rows:
        for tool, tests in row["tools"].items():
            tools.setdefault(tool, set()).update(tests)
    counts = Counter({tool: len(tools.get(tool, ())) for tool in expected["tools"]})
    folders = {
        folder: sum(test.startswith(f"{folder}/") for test in passed) for folder in expected["folders"]
    }
    wrong = []
    print(f"{'ran and passed against':<32}{'tests':>7}{'at least':>10}")
    for what, count, least in [
        *(
            (f"real kernels ({folder})", folders[folder], least)
            for folder, least in expected["folders"].items()
        ),
        *((tool, counts[tool], least) for tool, least in expected["tools"].items()),
    ]:
        print(f"{what:<32}{count:>7,}{least:>10,}{'   too few' if count < least else ''}")
        if count < least:
            wrong.append(f"{what}: {count} tests, and account.toml says at least {least}")
    skipped = {test: reason for row in rows for test, reason in row["skipped"].items() if test not in passed}
    known = expected.get("skip", [])
    for test, reason in sorted(skipped.items()):
        why = next((one["reason"] for one in known if fnmatchcase(test, one["test"])), None)
        print(f"skipped: {test}: {reason}\n    {why or 'and account.toml does not say why it may be'}")
        if why is None:
            wrong.append(f"skipped: {test}: {reason}")
    print(f"{len(passed):,} tests passed in {len(rows)} runs, {len(skipped)} skipped in all of them")
    return wrong


def main() -> int:
    """The command line: check FILE."""
    if sys.argv[1:2] != ["check"] or len(sys.argv) != 3:
        print("usage: account.py check FILE", file=sys.stderr)
        return 2
    wrong = check(Path(sys.argv[2]))
    for line in wrong:
        print(f"account: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

"""fixtures/build.py: what is committed is what the source builds, wherever the checkout lies."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # guests are built

TOP = Path(__file__).resolve().parents[2]
GUESTS = ("purgatory", "core", "capture", "vmcopy")


def build(*arguments: str, top: Path = TOP) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(top / "fixtures" / "build.py"), *arguments]
    return subprocess.run(command, cwd=top.anchor, text=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the build reads and writes, at another path."""
    pytest.importorskip("ziglang")
    top = tmp_path / "a longer path than usual" / "checkout"
    shutil.copytree(TOP / "purgatory", top / "purgatory")
    shutil.copytree(TOP / "fixtures", top / "fixtures")
    shutil.copytree(TOP / "kexecemu", top / "kexecemu", ignore=shutil.ignore_patterns("__pycache__"))
    return top


def test_the_committed_guests_are_what_their_source_builds(checkout: Path) -> None:
    done = build("--check", *GUESTS, top=checkout)
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_an_output_that_differs(checkout: Path) -> None:
    with (checkout / "purgatory" / "purgatory.ro").open("r+b") as object_file:
        object_file.seek(100)
        object_file.write(b"\xff")
    (checkout / "fixtures" / "guests" / "capture-Image").unlink()
    done = build("--check", *GUESTS, top=checkout)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "purgatory/purgatory.ro",
        "fixtures/guests/capture-Image",
    ]


def test_a_changed_source_changes_the_tree_and_no_unchanged_output_is_touched(checkout: Path) -> None:
    entry = checkout / "purgatory" / "entry.S"
    entry.write_text(entry.read_text().replace(".skip\t2048", ".skip\t2112"))
    assert build("--check", "purgatory", top=checkout).returncode == 1
    done = build(*GUESTS, top=checkout)
    assert (done.returncode, done.stdout) == (0, "built purgatory/purgatory.ro\nbuilt purgatory/core.ro\n")
    assert build("--check", *GUESTS, top=checkout).returncode == 0


def test_an_undefined_symbol_fails_the_build(checkout: Path) -> None:
    source = checkout / "purgatory" / "purgatory.c"
    source.write_text(source.read_text() + "int missing(void);\nint use(void) { return missing(); }\n")
    done = build("purgatory", top=checkout)
    assert done.returncode == 2
    assert "undefined symbol: missing" in done.stderr


def test_no_output_carries_the_path_of_checkout_or_compiler(checkout: Path, tmp_path: Path) -> None:
    assert build("--out", str(tmp_path / "out"), *GUESTS, top=checkout).returncode == 0
    outputs = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(outputs) > 5
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None and spec.origin is not None
    for path in outputs:
        content = path.read_bytes()
        assert b"longer path" not in content, path
        assert str(Path(spec.origin).parent).encode() not in content, path


@pytest.mark.parametrize("arguments", [("--compiler", "gcc"), ("--check", "--out", "x"), ("no-such-guest",)])
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...]) -> None:
    assert build(*arguments).returncode == 2

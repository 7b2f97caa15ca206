"""What kexecemu reads: whatever is in it, the answer is an object or one of kexecemu's own errors, and soon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import run as runs
from fuzz.formats import FORMATS, Format
from fuzz.mutate import Mutator
from fuzz.run import Tally, attack, corpus, row

from kexecemu.errors import FormatError, KexecemuError

ROOT = Path(__file__).resolve().parents[2]
INPUTS = 3000
HEAVY_INPUTS = 800


def taken(name: str) -> int:
    """How many of the good inputs are."""
    run, count = FORMATS[name].make(), 0
    for data in FORMATS[name].seeds():
        try:
            run(data)
        except KexecemuError:
            continue
        count += 1
    return count


@pytest.mark.parametrize("name", FORMATS)
def test_good_inputs_are_taken(name: str) -> None:
    assert taken(name) > 0, "a harness that refuses everything tries nothing"


@pytest.mark.parametrize("name", [name for name in FORMATS if corpus(name)])
def test_what_failed_once_does_not_fail_again(name: str, tmp_path: Path) -> None:
    tally = attack(name, 1, 0, 0.0, tmp_path)
    assert tally.inputs == len(corpus(name))
    assert tally.clean, row(tally) + f" {tally.outside} {tally.hangs}"


def test_every_file_of_the_corpus_is_some_format_s() -> None:
    assert {path.name for path in runs.CORPUS.iterdir()} <= set(FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_nothing_but_kexecemu_s_errors_comes_of_mutated_inputs(name: str, tmp_path: Path) -> None:
    tally = attack(name, 20261129, HEAVY_INPUTS if FORMATS[name].heavy else INPUTS, 0.0, tmp_path)
    assert tally.clean, row(tally) + f" {tally.outside} {tally.hangs}"
    assert (
        tally.peak < 300 << 20
    )  # 256 MiB is what a purgatory may ask for, in kexecemu/kernel/image/purgatory.py


def test_inputs_are_the_same_for_a_seed_and_a_number_and_no_others() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\nfrom fuzz.formats import FORMATS\nfrom fuzz.mutate import Mutator\n"
        "import hashlib\nfor name in ('x509', 'crashkernel', 'verdict'):\n    one = FORMATS[name]\n"
        "    make = Mutator(name, 3, one.seeds(), one.ways, one.most).make\n"
        "    print(name, hashlib.sha256(b''.join(map(make, range(200)))).hexdigest())\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script, str(ROOT), str(ROOT / "tests")],
            env={**os.environ, "PYTHONHASHSEED": number},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number in ("0", "1")
    }
    assert len(said) == 1
    one = FORMATS["crashkernel"]
    first, second = (Mutator("crashkernel", seed, one.seeds(), one.ways, one.most) for seed in (3, 4))
    assert [first.make(at) for at in range(50)] != [second.make(at) for at in range(50)]


def test_what_goes_wrong_is_counted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sensitive(data: bytes) -> None:
        if len(data) % 5 == 0:
            raise FormatError("refused")
        if len(data) % 5 == 1:
            raise ZeroDivisionError
        if len(data) % 5 == 2:
            while True:
                pass

    one = Format(lambda: [bytes(3)], lambda: sensitive, FORMATS["core"].ways, most=7)
    monkeypatch.setitem(FORMATS, "core", one)
    monkeypatch.setattr(runs, "LIMIT", 0.01)
    tally: Tally = attack("core", 1, 60, 0.0, tmp_path)
    assert not tally.clean and len(tally.outside) == 1 and len(tally.hangs) > 1
    (kind, kept), *_ = tally.outside.items()
    assert "ZeroDivisionError" in kind and len(Path(kept).read_bytes()) % 5 == 1
    assert all(len(Path(one).read_bytes()) % 5 == 2 for one in tally.hangs)

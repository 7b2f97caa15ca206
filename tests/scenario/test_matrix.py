"""A scenario with a [matrix]: its cells, what each expects, and how they are run and chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kexecemu.cli import main
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError
from kexecemu.scenario.matrix import cells_of, choose_cells, the_cell
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import run_scenario, scenario_setup
from kexecemu.scenario.schema import Scenario

HEAD = """
schema = 1
name = "a matrix"
[machine]
ram = "64M"
[kernel]
era = "6.12"
cmdline = "crashkernel=16M"
[[fault]]
at = "initrd+0x10"
write = "ffff"
[expect]
outcome = "detected"
segment = "initrd"
"""
MATRIX = """
[matrix]
purgatory = ["default", "none"]
era = ["6.1", "6.4"]
[[matrix.except]]
era = "6.1"
outcome = "prevented"
[[matrix.except]]
era = "6.4"
purgatory = "none"
outcome = "silent"
segments = ["initrd"]
"""


def read(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "matrix.toml"
    path.write_text(text)
    return read_scenario(path)


def test_there_is_a_cell_for_each_combination_in_one_order_whatever_the_file_s(tmp_path: Path) -> None:
    cells = cells_of(read(tmp_path, HEAD + MATRIX))
    assert [cell.name for cell in cells] == [
        "era=6.1,purgatory=default",
        "era=6.1,purgatory=none",
        "era=6.4,purgatory=default",
        "era=6.4,purgatory=none",
    ]
    for cell in cells:
        setup = scenario_setup(cell.scenario, tmp_path)
        assert (setup.era, setup.purgatory) == (dict(cell.values)["era"], dict(cell.values)["purgatory"])
        assert (setup.ram, setup.cmdline) == ("64M", "crashkernel=16M")


def test_every_key_of_a_matrix_arrives_where_it_is_meant_to(tmp_path: Path) -> None:
    text = "[matrix]\nera=['6.4']\nprotection=['readonly']\npurgatory=['none']\n"
    text += "syscall=['kexec_load']\ncapture=['linux']\n"
    (cell,) = cells_of(read(tmp_path, HEAD + text))
    setup = scenario_setup(cell.scenario, tmp_path)
    found = (setup.era, setup.protection, setup.purgatory, setup.syscall, setup.capture)
    assert found == ("6.4", "readonly", "none", "kexec_load", "linux")


def test_an_exception_takes_the_place_of_all_that_is_expected_and_the_last_that_fits_counts(
    tmp_path: Path,
) -> None:
    text = HEAD + MATRIX + '[[matrix.except]]\nera = "6.1"\npurgatory = "none"\noutcome = "masked"\n'
    expected = [cell.scenario.expect for cell in cells_of(read(tmp_path, text))]
    assert [one and (one.outcome, one.segment, one.segments) for one in expected] == [
        (Outcome.PREVENTED, None, []),
        (Outcome.MASKED, None, []),
        (Outcome.DETECTED, "initrd", []),
        (Outcome.SILENT, None, ["initrd"]),
    ]


def test_every_cell_ends_as_it_is_expected_to(tmp_path: Path) -> None:
    for cell in cells_of(read(tmp_path, HEAD + MATRIX)):
        result = run_scenario(cell.scenario, tmp_path)
        assert result.expected
        assert result.mismatches == [], cell.name
        result.kernel.board.close()


def test_the_matrix_that_ships_tells_all_ways_of_protecting_apart() -> None:
    path = find_scenario("ways-of-protecting")
    outcomes = {}
    for cell in cells_of(read_scenario(path)):
        result = run_scenario(cell.scenario, path.parent)
        assert result.mismatches == [], cell.name
        outcomes[cell.name] = result.end.outcome.value
        result.kernel.board.close()
    assert len(outcomes) == 8
    assert outcomes.pop("protection=none,purgatory=default") == "detected"
    assert outcomes.pop("protection=none,purgatory=none") == "silent"
    assert set(outcomes.values()) == {"prevented"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[matrix]",
            "matrix: has no values; give some for era, protection, purgatory, syscall, way, capture",
        ),
        ("[matrix]\nera = ['6.1', '6.1']", "matrix.era: '6.1' is there twice"),
        ("[matrix]\nera = ['6.1']\n[[matrix.except]]\noutcome = 'silent'", "matrix.except[0]: names no cell"),
        (
            "[matrix]\nera = ['6.1']\n[[matrix.except]]\nera = '6.4'\noutcome = 'silent'",
            "matrix.except[0]: fits no cell of the matrix",
        ),
        (
            "[matrix]\nera = ['6.1']\n[[matrix.except]]\npurgatory = 'none'\noutcome = 'silent'",
            "matrix.except[0]: fits no cell of the matrix",
        ),
        ("[matrix]\nera = ['6.1', '5.4']", "era '5.4' is older than 6.1"),
        ("[matrix]\nprotection = ['strong']", "protection 'strong' is not known"),
        ("[matrix]\nsyscall = ['kexec']", "at `$.matrix.syscall[0]`"),
        ("[matrix]\neras = ['6.1']", "unknown field `eras`"),
    ],
)
def test_a_matrix_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        read(tmp_path, HEAD + text)
    assert words in str(refusal.value)
    assert "matrix.toml" in str(refusal.value)


def test_a_real_first_kernel_has_no_matrix(tmp_path: Path) -> None:
    text = 'schema = 1\nname = "x"\n[kernel]\nlinux = "fetched:kernel"\n[matrix]\nera = ["6.1"]\n'
    with pytest.raises(InputError, match=r"matrix\.era means nothing where the first kernel is a real one"):
        read(tmp_path, text)


# -- choosing ----------------------------------------------------------------------------------------------------


def test_some_of_its_values_choose_the_cells_that_have_them(tmp_path: Path) -> None:
    scenario = read(tmp_path, HEAD + MATRIX)
    assert len(choose_cells(scenario, None)) == 4
    assert [cell.name for cell in choose_cells(scenario, "purgatory=none")] == [
        "era=6.1,purgatory=none",
        "era=6.4,purgatory=none",
    ]
    assert the_cell(scenario, "purgatory=none, era=6.4").kernel.era == "6.4"


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("era=6.12", "cell 'era=6.12': no era '6.12' in the matrix; it has 6.1, 6.4"),
        ("eta=6.1", "cell 'eta=6.1': no key 'eta' in the matrix; it has era, purgatory"),
        ("protection=pte", "no key 'protection' in the matrix; it has era, purgatory"),
        ("6.1", "no key '6.1' in the matrix"),
        ("era=6.1,era=6.4", "gives two values for one key"),
        ("", "no key '' in the matrix"),
    ],
)
def test_a_cell_that_there_is_not_is_answered_with_those_that_there_are(
    tmp_path: Path, chosen: str, words: str
) -> None:
    with pytest.raises(InputError) as refusal:
        choose_cells(read(tmp_path, HEAD + MATRIX), chosen)
    assert words in str(refusal.value)


def test_where_one_is_needed_several_are_refused_with_the_name_of_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a matrix of 4 cells: name one, as in era=6\.1,purgatory=default"):
        the_cell(read(tmp_path, HEAD + MATRIX), None)
    plain = read(tmp_path, HEAD)
    assert the_cell(plain, None) == plain
    with pytest.raises(InputError, match=r"has no \[matrix\]"):
        the_cell(plain, "era=6.1")


# -- the command -------------------------------------------------------------------------------------------------


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, *words: str) -> tuple[int, str, str]:
    read(tmp_path, text)
    status = main(["run", str(tmp_path / "matrix.toml"), *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_runs_all_cells_with_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(tmp_path, capsys, HEAD + MATRIX)
    assert status == 0
    assert out.splitlines() == [
        "a matrix",
        "era=6.1,purgatory=default  prevented dump true",
        "era=6.1,purgatory=none     prevented dump true",
        "era=6.4,purgatory=default  detected  dump none",
        "era=6.4,purgatory=none     silent    dump true",
        "4 of 4 as expected",
    ]


def test_one_cell_that_ends_otherwise_is_named_and_the_status_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (HEAD + MATRIX).replace('outcome = "silent"', 'outcome = "masked"')
    status, out, _ = run(tmp_path, capsys, wrong)
    assert status == 1
    assert out.splitlines()[-3:] == [
        "era=6.4,purgatory=none     silent    dump true",
        "                           unexpected: outcome is silent, expected masked",
        "3 of 4 as expected",
    ]
    status, out, _ = run(tmp_path, capsys, wrong, "--cell", "era=6.1")
    assert (status, out.splitlines()[-1]) == (0, "2 of 2 as expected")


def test_one_cell_alone_is_run_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--cell", "era=6.4,purgatory=none", "--html", str(tmp_path / "one.html"))
    status, out, _ = run(tmp_path, capsys, HEAD + MATRIX, *words)
    assert status == 0
    assert "instructions  event" in out
    assert "outcome      silent: " in out
    assert (tmp_path / "one.html").stat().st_size > 10_000


def test_its_json_is_one_object_with_all_of_each_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(tmp_path, capsys, HEAD + MATRIX, "--json", "--cell", "era=6.4")
    found = json.loads(out)
    assert (status, found["name"], found["as_expected"]) == (0, "a matrix", True)
    assert [(one["cell"], one["outcome"]) for one in found["cells"]] == [
        ({"era": "6.4", "purgatory": "default"}, "detected"),
        ({"era": "6.4", "purgatory": "none"}, "silent"),
    ]
    assert all({"console", "segments", "damage", "as_expected"} <= one.keys() for one in found["cells"])


def test_files_of_one_crash_are_refused_for_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(tmp_path, capsys, HEAD + MATRIX, "--vmcore", str(tmp_path / "vmcore"))
    assert (status, out) == (2, "")
    assert err == (
        "kexecemu: --vmcore is for one crash, and this is a matrix of 4: add --cell era=6.1,purgatory=default\n"
    )


def test_a_cell_that_cannot_be_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = HEAD + "[matrix]\npurgatory = ['default', 'none.ro']\n"
    status, _, err = run(tmp_path, capsys, text)
    assert status == 2
    assert err.startswith("kexecemu: cell purgatory=none.ro: ")
    assert err.count("\n") == 1


def test_a_campaign_takes_no_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = HEAD[: HEAD.index("[[fault]]")] + "[matrix]\nera = ['6.1', '6.4']\n"
    read(tmp_path, text)
    out = tmp_path / "out"
    words = ["campaign", str(tmp_path / "matrix.toml"), "--faults", "5", "--seed", "1", "--out", str(out)]
    assert main(words) == 2
    assert "is a matrix, which `kexecemu run` and pytest run; a campaign needs one" in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())

"""The plugin's choices: cells of a matrix as tests, options from a mark, and -m kexecemu."""

from __future__ import annotations

import pytest

from kexecemu.data import fixture_path

pytest_plugins = ["pytester"]

GOOD = fixture_path("scenarios/initrd-stamped.toml").read_text()
MATRIX = fixture_path("scenarios/ways-of-protecting.toml").read_text()


def test_each_cell_of_a_matrix_is_a_test_of_its_own(pytester, inner):
    (pytester.path / "ways.scenario.toml").write_text(
        MATRIX.replace('outcome    = "silent"', 'outcome    = "masked"')
    )
    result = inner("-v", "-k", "not readonly and not bbml2")
    result.assert_outcomes(passed=3, failed=1, deselected=4)
    result.stdout.fnmatch_lines(
        [
            "ways.scenario.toml::the same stray word*[[]protection=none,purgatory=default[]] PASSED*",
            "ways.scenario.toml::the same stray word*[[]protection=pte,purgatory=none[]] PASSED*",
            "outcome is silent, expected masked",
            "again: kexecemu run ways.scenario.toml --seed 1 --cell protection=none,purgatory=none",
        ]
    )


MARKED = """
    import pytest

    pytestmark = pytest.mark.kexecemu(era="6.1", ram="512M")

    def test_run(kexecemu_run):
        end = kexecemu_run("stamped-without-purgatory")
        assert end.outcome == "prevented"  # the file's era is 6.4, and has no protection
        assert kexecemu_run("stamped-without-purgatory", era="6.4").outcome == "silent"

    @pytest.mark.kexecemu(protection="none", ram="256M")
    def test_kernel(kexecemu_kernel):
        kernel = kexecemu_kernel(cmdline="crashkernel=64M")
        assert kernel.config.release.value == "6.1"
        assert kernel.config.way.value == "none"
        assert kernel.board.ram.size == 256 << 20

    def test_board(kexecemu_board):
        assert kexecemu_board().ram.size == 512 << 20
        assert kexecemu_board("1G", 2).ram.size == 1 << 30
"""


def test_a_mark_gives_options_that_a_call_leaves_open_and_the_nearest_counts(pytester, inner):
    pytester.makepyfile(MARKED)
    inner("--strict-markers").assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ('"6.1"', "the marker kexecemu takes options by name, as in era=*6.1*"),
        ('protektion="pte"', "*no option 'protektion'; there are append, *"),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused_in_words(pytester, inner, mark, said):
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.kexecemu({mark})
        def test_it(kexecemu_run):
            kexecemu_run("golden")
        """
    )
    result = inner()
    assert result.ret == 1
    result.stdout.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*kexecemu/*.py*")


def test_the_mark_selects_scenarios_and_whatever_crashes_a_kernel(pytester, inner):
    (pytester.path / "one.scenario.toml").write_text(GOOD)
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def mine(kexecemu_run):
            return kexecemu_run

        def test_one(mine): pass
        def test_two(kexecemu_campaign): pass
        @pytest.mark.kexecemu
        def test_three(): pass
        def test_other(tmp_path): pass
        """
    )
    result = inner("-m", "kexecemu", "--collect-only", "-q")
    names = [line.split("::")[1] for line in result.outlines if "::" in line]
    assert names == [
        "a stray word in the initrd is found at crash time",
        "test_one",
        "test_two",
        "test_three",
    ]
    inner("-m", "not kexecemu").assert_outcomes(passed=1, deselected=4)
    inner("--markers").stdout.fnmatch_lines(["@pytest.mark.kexecemu(**options): *"])

"""--expect: [expect] in the words of a command, there and back."""

from __future__ import annotations

import pytest

from kexecemu.cli import main
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError
from kexecemu.scenario.expectation import expect_words, parse_expect
from kexecemu.scenario.schema import Expect

FULL = Expect(
    Outcome.DETECTED,
    segment="initrd",
    segments=["initrd", "dtb"],
    console=["a = b", "", "c"],
    console_absent=["d"],
    verdict=["mmu_on", "crypto"],
    verdict_state="mismatch",
)


def test_all_of_it_goes_there_and_back() -> None:
    assert parse_expect(expect_words(FULL)) == FULL
    assert expect_words(Expect(Outcome.SILENT)) == ["silent"]
    assert parse_expect(["silent"]) == parse_expect(["outcome=silent"]) == Expect(Outcome.SILENT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["silnet"], "--expect 'silnet' is no outcome"),
        (["outcome=silnet"], "--expect 'silnet' is no outcome"),
        (["segment=dtb"], "--expect 'segment=dtb': give the outcome too, as in --expect detected"),
        (["silent", "segmnet=dtb"], "no key 'segmnet'"),
        (["silent", "detected"], "--expect 'detected': outcome is given twice"),
        (["silent", "segment=dtb", "segment=initrd"], "segment is given twice"),
        (["silent", "verdict=mmu"], "--expect 'verdict=mmu': verdict is one of "),
        (["silent", "verdict_state=fine"], "verdict_state is one of "),
        (["silent", "x=y"], "there are outcome, segment, console, "),
        (["loud"], "they are captured, prevented, "),
    ],
)
def test_what_is_no_expectation_is_answered_with_what_there_is(words: list[str], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_expect(words)
    assert said in str(refusal.value)


def test_run_and_crash_take_it_and_it_replaces_what_the_file_expects(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "initrd-stamped", "--expect", "detected", "--expect", "console=all is well"]) == 1
    assert "unexpected   the console does not say 'all is well'\n" in capsys.readouterr().out
    assert main(["run", "initrd-stamped", "--expect", "silent"]) == 1
    assert (
        main(["run", "initrd-stamped", "--expect", "detected", "--expect", "console_absent=digests match"])
        == 0
    )
    assert main(["crash", "--expect", "captured", "--expect", "verdict=self_checked"]) == 0
    assert main(["crash", "--expect", "captured", "--expect", "verdict=repaired"]) == 1

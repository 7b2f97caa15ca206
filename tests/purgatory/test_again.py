"""What was in its memory before is nothing to the purgatory: a dead kernel's stores, or a run of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from unicorn import Uc

from tests.purgatory.conftest import PURGATORY, Bench, El, Mode, Run, load
from tests.purgatory.test_policies import STAMP, Case, Policy, from_caller

# What the loader has put there, and nobody writes: magic and version of the record.
KEPT = 12
ENDS: dict[str, tuple[str, dict[int, bytes], dict[str, bytes]]] = {
    "good": ("purgatory_start", {}, {}),
    "stamped": ("purgatory_start", STAMP, {}),
    "damaged itself": ("purgatory_start", {}, {"purgatory_self_digest": bytes(31) + b"\1"}),
    "early": ("purgatory_check", STAMP, {}),
    "trapped": ("purgatory_start", {}, {}),
}


@pytest.fixture(params=[Mode(), Mode(El.EL2, mmu=False, crypto=False)], ids=str)
def mode(request: pytest.FixtureRequest) -> Mode:
    mode: Mode = request.param
    return mode


@pytest.mark.parametrize("fill", [b"\xff", b"\x01"], ids=["ones", "small numbers"])
@pytest.mark.parametrize("end", ENDS)
def test_a_run_ends_the_same_whatever_was_in_its_data(
    purgatory_ro: Path, mode: Mode, end: str, fill: bytes
) -> None:
    start, damage, symbols = ENDS[end]
    loaded = load(purgatory_ro, PURGATORY)
    record = loaded.symbols["purgatory_verdict"][0]
    size = loaded.symbols["purgatory_data_end"][0] - record - KEPT

    def clean(uc: Uc) -> None:
        if end == "trapped":
            uc.mem_write(loaded.symbols["digest_update"][0], bytes(4))  # udf
        from_caller(uc)

    def dirty(uc: Uc) -> None:
        uc.mem_write(record + KEPT, fill * size)
        clean(uc)

    def run(before: object) -> Run:
        case = Case(Bench(loaded, PURGATORY), mode)
        return case.run(Policy.BOOT_ANYWAY, damage, before=before, start=start, symbols=dict(symbols))

    first, again = run(clean), run(dirty)

    def told(run: Run) -> object:
        # An exception's registers are valid after one, expected and found after a comparison.
        valid = run.verdict if end == "trapped" else replace(run.verdict, esr=0, elr=0, far=0)
        compared = end not in ("damaged itself", "trapped")
        return valid if compared else replace(valid, expected=b"")

    assert told(again) == told(first)
    assert (again.pc, again.console, again.registers, again.system) == (
        first.pc,
        first.console,
        first.registers,
        first.system,
    )
    assert again.unaligned == [] and again.foreign == []

"""A purgatory that leaves no record: what came of a crash is told by where it stands and by what was not as loaded."""

from __future__ import annotations

import pytest

from kexecemu.crash.outcome import Outcome
from kexecemu.crash.purgatory_check import Reply, judge_reply
from kexecemu.crash.stages import PurgatoryEnd
from kexecemu.data import purgatory_path
from kexecemu.kernel.image.purgatory import parse_purgatory
from kexecemu.scenario.runner import Result
from kexecemu.scenario.runner import crash as run_crash
from kexecemu.scenario.setup import Setup
from kexecemu.stray.fault import By, Fault

BRANCH_TO_SELF = bytes.fromhex("00000014")


def crash(*faults: Fault) -> Result:
    setup = Setup(ram="64M", cmdline="crashkernel=16M", purgatory="core")
    return run_crash("", setup, list(faults))


def dma(at: str, data: bytes) -> Fault:
    return Fault(at, write=data, by=By.DMA)


def reply(result: Result) -> Reply:
    end = result.end
    return judge_reply(True, end.outcome, end.damage, end.purgatory, end.capture)


def test_an_intact_image_is_captured_and_there_is_no_record() -> None:
    result = crash()
    assert (result.end.outcome, result.end.verdict) == (Outcome.CAPTURED, None)


def test_a_damaged_image_is_detected() -> None:
    result = crash(dma("initrd+0x100", b"\xde\xad\xbe\xef"))
    assert result.end.outcome is Outcome.DETECTED and reply(result) is Reply.CAUGHT
    assert result.end.purgatory is not None and not result.end.purgatory.itself
    assert "that the loaded image is not as loaded" in result.end.reason


@pytest.mark.parametrize(
    "symbol", ["purgatory_kernel_entry", "purgatory_dtb", "purgatory_sha256_digest", "purgatory_self_digest"]
)
def test_a_damaged_symbol_is_detected_as_its_own_though_nothing_else_was_hashed(symbol: str) -> None:
    result = crash(dma(f"purgatory:{symbol}+1", b"\x5a"))
    assert result.end.outcome is Outcome.DETECTED and reply(result) is Reply.CAUGHT
    assert result.end.purgatory is not None and result.end.purgatory.itself
    assert "that it is itself not as loaded" in result.end.reason


def at(symbol: str) -> str:
    """Its first instruction."""
    return f"purgatory:{symbol}"


def test_an_exception_is_told_by_its_vectors() -> None:
    result = crash(dma(at("purgatory"), bytes(4)))
    assert result.end.purgatory is not None
    assert (result.end.outcome, result.end.purgatory.end) == (Outcome.TRAPPED, PurgatoryEnd.TRAPPED)
    assert result.end.purgatory.fault is not None and reply(result) is Reply.TRAPPED


@pytest.mark.parametrize(
    "write",
    [
        dma(at("purgatory"), BRANCH_TO_SELF),
        dma(at("purgatory_start"), (0x14000000 | 0x64 // 4).to_bytes(4, "little")),
    ],
    ids=["a loop", "straight to the stop"],
)
def test_where_nothing_was_judged_it_hung(write: Fault) -> None:
    """The entry made a branch to purgatory_stop: it stands where a refusal does, and has hashed nothing."""
    symbol = parse_purgatory(purgatory_path("core").read_bytes()).global_symbol("purgatory_stop")
    assert symbol is not None and symbol.value == 0x64
    result = crash(write)
    assert (result.end.outcome, reply(result)) == (Outcome.HUNG, Reply.HUNG)


def test_without_an_entry_it_is_refused_as_its_own_damage() -> None:
    result = crash(dma("purgatory:purgatory_kernel_entry", bytes(8)))
    assert (result.end.outcome, reply(result)) == (Outcome.DETECTED, Reply.CAUGHT)

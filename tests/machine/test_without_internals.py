"""An engine whose inner fields are not where they are sought runs the same, only more slowly, and that is said."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pytest
from machine import system_guest as g
from machine.system_guest import DAIFCLR_I, OFF, PROLOGUE, b, mov, same

from kexecemu import cli
from kexecemu.machine.board import Board
from kexecemu.machine.cpu import engine_internals
from kexecemu.machine.cpu.counting import CountingStepper
from kexecemu.machine.cpu.stepper import BlockStepper

PROGRAM = [
    PROLOGUE,
    [*mov(9, 40), g.CNTV_TVAL | 9, *mov(9, 1), g.CNTV_CTL | 9],
    DAIFCLR_I,
    mov(8, 300),
    [g.sub(8, 8, 1), g.cbnz(8, -1)],
    g.svc(7),
    b(1),
    OFF,
]


@pytest.fixture
def another_layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fields are beyond what is searched."""
    found = (engine_internals.offsets, engine_internals._no_exit_request)
    for one in found:
        one.cache_clear()
    monkeypatch.setattr(engine_internals, "_STRUCT_SIZE", 64)
    yield
    for one in found:
        one.cache_clear()


def stepper_of(monkeypatch: pytest.MonkeyPatch, native: str) -> object:
    monkeypatch.setenv("KEXECEMU_NO_NATIVE", native)
    with Board("4M") as board:
        board.boot_cpu.reset(g.CODE)
        return board.boot_cpu.system()


def test_with_the_fields_each_form_has_its_stepper_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KEXECEMU_NO_INTERNALS", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(stepper_of(monkeypatch, "0"), BlockStepper)
        assert isinstance(stepper_of(monkeypatch, "1"), CountingStepper)


@pytest.mark.parametrize("native", ["0", "1"])
def test_another_layout_is_said_in_words_and_runs_by_blocks(
    another_layout: None, monkeypatch: pytest.MonkeyPatch, native: str
) -> None:
    with pytest.warns(
        RuntimeWarning, match=r"runs more slowly than it could: this version of the engine keeps "
    ):
        assert isinstance(stepper_of(monkeypatch, native), BlockStepper)


def test_another_layout_runs_the_same(another_layout: None) -> None:
    result = same(PROGRAM, seeds=(1, 2))
    assert "switched off" in result.end
    assert len(result.log) >= 7  # the timer's interrupt and the call


def test_on_the_command_line_the_warning_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEXECEMU_NO_INTERNALS", "1")
    monkeypatch.setattr(sys, "argv", ["kexecemu"])

    def run(*_: object, **__: object) -> int:
        warnings.simplefilter("default")
        for native in ("0", "1", "0"):
            stepper_of(monkeypatch, native)
        return 0

    monkeypatch.setattr(cli, "app", run)
    assert cli.main([]) == 0
    said = "an operating system runs more slowly than it could: KEXECEMU_NO_INTERNALS=1 is set"
    assert capsys.readouterr().err == f"kexecemu: {said}\n"

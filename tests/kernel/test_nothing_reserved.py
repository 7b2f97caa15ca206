"""Why there is no crash region, where the kernel itself says nothing of it."""

from __future__ import annotations

import pytest

from kexecemu import Board, InputError, Kernel, KernelConfig
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.linear_survey import survey_linear_map
from kexecemu.kernel.memory.crashkernel import why_nothing
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.options import Setup
from kexecemu.scenario.setup import prepare

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cmdline", "why"),
    [
        ("quiet", "the first kernel's command line has no crashkernel="),
        ("crashkernel=64M,low", "crashkernel=X,low by itself reserves no crash region"),
        ("crashkernel=64M,cma", "crashkernel=X,cma by itself reserves no crash region"),
        ("crashkernel=0", "crashkernel= asks for no bytes"),
        ("crashkernel=1G", "asks for 0x40000000 bytes, all of RAM (0x40000000) or more"),
        ("crashkernel=1G,high", "asks for 0x40000000 bytes, all of RAM (0x40000000) or more"),
    ],
)
def test_a_line_that_asks_for_nothing_is_told_why(cmdline: str, why: str) -> None:
    assert why in why_nothing(Era("7.3"), cmdline, GIB, ["said"])


@pytest.mark.parametrize("cmdline", ["crashkernel=64M", "crashkernel=64M,high", "crashkernel=x"])
def test_of_what_is_asked_for_the_kernel_speaks_itself(cmdline: str) -> None:
    assert why_nothing(Era("7.3"), cmdline, GIB, ["first", "said"]) == "said"
    assert why_nothing(Era("7.3"), cmdline, GIB, []) == "the kernel says nothing of it"


@pytest.mark.parametrize(
    ("era", "line", "said"),
    [
        ("6.1", "64M-:", "Memory value expected"),
        ("6.12", "1G-2G:64M@", "crahskernel: Memory value expected after '@'"),
        ("7.3", "1G-2G:64M@", "crashkernel: Memory value expected after '@'"),
        ("7.3", "x", "crashkernel: memory value expected"),
    ],
)
def test_the_kernel_s_words_are_told_however_they_are_spelt(era: str, line: str, said: str) -> None:
    setup = Setup(cmdline=f"crashkernel={line}", era=era)
    with pytest.raises(InputError) as error:
        prepare(setup)
    assert str(error.value) == f"no crashkernel memory is reserved: {said}"
    survey = survey_linear_map([PhysRange.of(GIB, GIB)], KernelConfig(era), f"crashkernel={line}")
    assert survey.messages[-1:] == (said,)


def test_a_size_that_wraps_to_nothing_reserves_no_cma_and_a_bare_rodata_is_a_null() -> None:
    line = "crashkernel=64M crashkernel=18446744073709551615,cma rodata"
    with Kernel.boot(Board("1G"), KernelConfig("7.3"), cmdline=line) as kernel:
        said = kernel.board.uart.text
        assert kernel.crashk_cma_ranges == ()
    assert "cma: Failed to reserve 0 MiB" in said and "0 MB reserved in 0 ranges" in said
    assert "Invalid option string for rodata: '(null)'" in said

"""The entry contract: what the stub was entered with, and what it does when that was wrong."""

from __future__ import annotations

import struct

import pytest
from stub_bench import (
    DAIF,
    DONE,
    DTB,
    KERNEL,
    MISPLACED,
    MMU_ON,
    RAM,
    REAL_DTB,
    TRAPPED,
    UART,
    VIOLATED,
    X0_NO_DTB,
    X0_UNALIGNED,
    X1_X3,
    run,
)
from stub_crash import cells, core, fdt, tree
from unicorn import Uc
from unicorn import arm64_const as arm64


@pytest.mark.parametrize("kernel", [0x40000000 + 0x200000, 0x5C000000, 0x6A000000])
def test_it_runs_at_any_2_mib(kernel: int) -> None:
    usable = cells(kernel, 0x200000)
    result = run(kernel=kernel, dtb=fdt(tree(chosen={"linux,usable-memory-range": usable})), memory=core())
    assert (result.record.state, result.record.violations) == (DONE, 0)
    assert result.lines[0] == f"capture: started at {kernel:#x}, EL1"


@pytest.mark.parametrize(
    ("how", "violation", "says"),
    [
        ({"x1_x3": (1, 0, 0)}, X1_X3, "x1-x3 nonzero: 0x1 0x0 0x0"),
        ({"x1_x3": (0, 0, 1 << 63)}, X1_X3, "x1-x3 nonzero: 0x0 0x0 0x8000000000000000"),
        ({"kernel": KERNEL + 0x1000}, MISPLACED, "image is not 2 MiB aligned"),
        ({"x0": DTB + 4, "dtb": bytes(4) + REAL_DTB}, X0_UNALIGNED, "x0 0x6fe00004 is not 8-byte aligned"),
        (
            {"prepare": lambda uc: uc.reg_write(arm64.UC_ARM64_REG_PSTATE, 0x345)},
            DAIF,
            "exceptions not masked, DAIF 0x340",
        ),
    ],
    ids=["x1", "x3", "misplaced", "unaligned", "irq unmasked"],
)
def test_a_violation_of_the_entry_contract_is_named_and_the_dump_still_taken(
    how: dict[str, object], violation: int, says: str
) -> None:
    result = run(memory=core(), **how)  # type: ignore[arg-type]
    assert result.record.violations == violation
    assert result.record.state == DONE
    assert f"capture: entry contract violated: {says}" in result.lines
    assert "capture: entry contract ok" not in result.lines
    assert not result.wild and not result.unaligned


def test_the_mmu_on_is_a_violation() -> None:
    def switch_on(uc: Uc) -> None:
        # One table of 1 GiB blocks, the same addresses: devices below 1 GiB, memory above.
        blocks = struct.pack("<QQ", 0x401 | 1 << 54, 0x40000000 | 0x705)
        uc.mem_write(0x40000000, blocks.ljust(4096, b"\0"))
        for register, value in {
            (10, 2, 3, 0, 0): 0xFF00,  # MAIR_EL1: 0 Device-nGnRnE, 1 Normal
            (2, 0, 3, 0, 2): 25 | 1 << 23 | 2 << 32,  # TCR_EL1: 39-bit TTBR0, no TTBR1, 40-bit PA
            (2, 0, 3, 0, 0): 0x40000000,  # TTBR0_EL1
            (1, 0, 3, 0, 0): 0x30C50839,  # SCTLR_EL1 with M
        }.items():
            uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (*register, value))

    result = run(memory=core(), prepare=switch_on)
    assert (result.record.violations, result.record.state) == (MMU_ON, DONE)
    assert "capture: entry contract violated: MMU on, SCTLR 0x30c50839" in result.lines


@pytest.mark.parametrize("x0", [0, 4, DTB + 1, DTB + 8, 0x8000000000, (1 << 64) - 4, UART], ids=hex)
def test_without_a_device_tree_it_stops_in_silence(x0: int) -> None:
    result = run(x0=x0, memory=core())
    assert (result.end, result.console, result.record.state) == ("stopped", "", VIOLATED)
    assert result.record.violations & X0_NO_DTB
    assert result.record.dtb_phys == 0
    assert not result.wild


def test_an_unexpected_exception_is_reported_and_stops() -> None:
    """The device tree claims memory that is not there, and the core header lies in it."""
    chosen = {"linux,elfcorehdr": cells(0x90000000, 0x1000)}
    memory = {"reg": cells(RAM, 0x80000000)}
    result = run(dtb=fdt(tree(chosen=chosen, memory=memory)))
    assert (result.end, result.record.state) == ("stopped", TRAPPED)
    assert result.lines[-2].startswith("capture: unexpected exception ESR 0x96000010 ELR 0x6a00")
    assert result.lines[-2].endswith("FAR 0x90000000")

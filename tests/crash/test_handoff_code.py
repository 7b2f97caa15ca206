"""The start-up code of a handed-over machine, run: by the emulated CPU at EL1, and read back word for word at EL2."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

import pytest
from capstone import CS_ARCH_ARM64, CS_MODE_LITTLE_ENDIAN, Cs

from kexecemu.crash.handoff_code import FLASH_LOW, FLASH_START, LOW_SIZE, start_code
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.cpu.sysregs import SYSREGS
from kexecemu.machine.ranges import PhysRange

FLASH, RAM = PhysRange.of(0, 0x400000), PhysRange.of(0x40000000, 0x100000)
ENTRY, LOW = RAM.start + 0x8000, RAM.start + 0x1000
# Values that a core has, of all that a kernel writes.
SYSTEM = {
    "CPACR_EL1": 3 << 20, "TTBR0_EL1": 0x12345000, "TTBR1_EL1": 0x23456000, "TCR_EL1": 0x5B5503510, "SPSR_EL1": 0x3C5,
    "ELR_EL1": 0xFFFF800010123458, "ESR_EL1": 0x96000047, "FAR_EL1": 0xFFFF00001234567F, "MAIR_EL1": 0xFF440C0400,
    "VBAR_EL1": 0xFFFF800010081800, "CONTEXTIDR_EL1": 0x77, "TPIDR_EL1": 0xFFFF000012340000, "TPIDR_EL0": 0x7777,
    "TPIDRRO_EL0": 0x8888, "CNTKCTL_EL1": 0xD6, "MDSCR_EL1": 0x1000,
}  # fmt: skip
WRITTEN = (*SYSTEM, "PAR_EL1", "AMAIR_EL1", "CSSELR_EL1")


def registers(seed: int, through: int | None, spsel: int = 1) -> dict[str, int]:
    """Of a CPU that stands at the entry; `through` is the register that has it, None for none."""
    random = Random(seed)
    with Board([FLASH, RAM]) as board:
        board.boot_cpu.reset(RAM.start)
        state = board.boot_cpu.registers() | SYSTEM
    state |= {f"x{number}": random.getrandbits(64) for number in range(31)}
    state |= {f"v{number}": random.getrandbits(128) for number in range(32)}
    state |= {
        "SP_EL0": 0x1230,
        "SP_EL1": 0x4560,
        "pc": ENTRY,
        "pstate": 0xA00003C4 | spsel,
        "SCTLR_EL1": 0x30D00800,
    }
    if through is not None:
        state[f"x{through}"] = ENTRY
    return state


def code(
    state: dict[str, int], el: int = 1, checks: bool = False, copied: int = 0x30, cleared: int = 0x100
) -> bytes:
    return start_code(state, el=el, alignment_checks=checks, low_phys=LOW, copied=copied, cleared=cleared)


@pytest.mark.parametrize("checks", [False, True])
@pytest.mark.parametrize("spsel", [0, 1])
@pytest.mark.parametrize("through", [None, 0, 9, 17, 30])
def test_run_at_el1_it_leaves_the_cpu_as_it_was_handed_over(
    through: int | None, spsel: int, checks: bool
) -> None:
    state = registers(1, through, spsel)
    with Board([FLASH, RAM]) as board:
        cpu, ram = board.boot_cpu, board.ram
        ram.write(FLASH_START, code(state, checks=checks))
        cpu.reset(FLASH_START)
        stop = cpu.run(within=range(FLASH.start, FLASH.end), limit=100_000, deliver=False)
        assert (stop.kind, cpu.pc) == (CpuStopKind.LEFT, ENTRY)
        now = cpu.registers()
    expected = state | {"SCTLR_EL1": 0x30D00800 | 2 * checks}
    if through is None:
        expected["x17"] = ENTRY
    names = [
        *(name for name in state if not name.isupper() and name != "sp"),
        *WRITTEN,
        "SCTLR_EL1",
        "SP_EL0",
        "SP_EL1",
    ]
    assert {name: hex(now[name]) for name in names} == {name: hex(expected[name]) for name in names}
    assert now["sp"] == (0x4560 if spsel else 0x1230)


@pytest.mark.parametrize(
    ("copied", "cleared"), [(0, 0), (0, 0x40), (0x10, 0x10), (0x30, 0x100), (0x100, 0x100)]
)
def test_low_memory_becomes_what_lies_in_the_flash_and_zeros_behind_it(copied: int, cleared: int) -> None:
    held = bytes(Random(2).randbytes(0x100))
    with Board([FLASH, RAM]) as board:
        board.ram.write(FLASH_START, code(registers(3, None), copied=copied, cleared=cleared))
        board.ram.write(FLASH_LOW, held)
        board.ram.fill(LOW - 0x10, 0x200, 0xEE)
        board.boot_cpu.reset(FLASH_START)
        board.boot_cpu.run(within=range(FLASH.start, FLASH.end), limit=100_000, deliver=False)
        found = board.ram.read(LOW - 0x10, 0x200)
    expected = b"\xee" * 0x10 + held[:copied] + bytes(cleared - copied)
    assert found == expected.ljust(0x200, b"\xee")


def read_back(data: bytes) -> tuple[list[tuple[str, int]], list[str]]:
    """(register of the system, value) as they are written, in order; and the other instructions."""
    written, rest, scratch = [], [], 0
    for one in Cs(CS_ARCH_ARM64, CS_MODE_LITTLE_ENDIAN).disasm(data, FLASH_START):
        words = one.op_str.replace(",", "").split()
        if one.mnemonic == "ldr" and words[1].startswith("#"):
            size, at = (16 if words[0][0] == "q" else 8), int(words[1][1:], 16) - FLASH_START
            assert at % size == 0 and at >= one.address - FLASH_START
            value = int.from_bytes(data[at : at + size], "little")
            if words[0] == "x9":
                scratch = value
        elif one.mnemonic == "msr" and words[1] == "x9":
            written.append((words[0], scratch))
        else:
            rest.append(f"{one.mnemonic} {one.op_str}".strip())
        if one.mnemonic == "br":
            break
    return written, rest


@pytest.mark.parametrize("checks", [False, True])
def test_at_el2_mmu_and_traps_are_off_by_registers_of_that_level(checks: bool) -> None:
    state = registers(4, 5)
    written, rest = read_back(code(state, el=2, checks=checks))
    plain, _ = read_back(code(state, el=1, checks=checks))
    own = {
        "hcr_el2": 1 << 31,  # EL1 is AArch64
        "cptr_el2": 0x33FF,  # nothing is trapped
        "sctlr_el2": 0x30C50830 | 2 * checks,  # Linux's INIT_SCTLR_EL2_MMU_OFF
        "sp_el1": 0x4560,
    }
    assert [one for one in written if one[0] not in own] == [
        (name, value & ~2 if name == "sctlr_el1" else value) for name, value in plain
    ]
    assert dict(written).items() >= own.items()
    names = [name for name, _ in written]
    assert names[:2] == ["hcr_el2", "cptr_el2"] and not own.keys() & dict(plain).keys()
    assert names.index("sctlr_el1") == names.index("sctlr_el2") - 1
    assert rest[-5:] == ["dsb sy", "isb", "msr spsel, #1", "mov sp, x9", "br x5"] and rest.count("isb") == 2


def test_it_writes_every_register_that_a_kernel_can_and_in_its_place() -> None:
    state = registers(6, 7)
    written, _ = read_back(code(state))
    system = [(name.lower(), state[name]) for name in WRITTEN]
    assert sorted(
        one for one in written if one[0].upper() in WRITTEN and one != ("cpacr_el1", 3 << 20)
    ) == sorted(one for one in system if one[0] != "cpacr_el1")
    assert written[0] == ("cpacr_el1", 3 << 20)  # before a vector register is touched
    assert written[-2:] == [("daif", 0x3C0), ("nzcv", 0xA0000000)]
    assert {name for name, _ in written} <= {*(name.lower() for name in SYSREGS), "daif", "nzcv"}


def test_code_and_what_it_copies_lie_apart_in_the_flash() -> None:
    assert (FLASH_START, FLASH_LOW, LOW_SIZE) == (0x1000, 0x100000, 0x100000)
    data: Any = code(registers(8, None))
    assert len(data) % 8 == 0 and FLASH_START + len(data) < FLASH_LOW
    # Two comparisons and the loops that they end, before anything else.
    assert struct.unpack_from("<I", data, 16)[0] == 0xEB01001F

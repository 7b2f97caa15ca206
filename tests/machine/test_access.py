"""The instrument that sees what silicon refuses while the MMU is off: it sees each kind, and accuses no good code."""

from __future__ import annotations

import capstone
import pytest

from kexecemu.errors import MachineError
from kexecemu.machine.cpu.access import AccessChecker, Violation, checked, element_size
from kexecemu.machine.memory.descriptors import Granule, TableFormat

DATA = 0x40010000  # in x0 of every program
FP_ON = 3 << 20

# Assembled by GNU as 2.40: word, element size in bytes, and how capstone reads it.
LOADS_AND_STORES = [
    (0xA9400801, 8, "ldp x1, x2, [x0]"),
    (0x29400801, 4, "ldp w1, w2, [x0]"),
    (0x69400801, 4, "ldpsw x1, x2, [x0]"),
    (0xF9400001, 8, "ldr x1, [x0]"),
    (0xB9800001, 4, "ldrsw x1, [x0]"),
    (0x79400001, 2, "ldrh w1, [x0]"),
    (0x39000001, 1, "strb w1, [x0]"),
    (0xF8626801, 8, "ldr x1, [x0, x2]"),
    (0x3DC00000, 16, "ldr q0, [x0]"),
    (0x3CC08000, 16, "ldur q0, [x0, #8]"),
    (0x3CC10400, 16, "ldr q0, [x0], #0x10"),
    (0xFD000000, 8, "str d0, [x0]"),
    (0x3D400000, 1, "ldr b0, [x0]"),
    (0xAD400400, 16, "ldp q0, q1, [x0]"),
    (0x6D000400, 8, "stp d0, d1, [x0]"),
    (0x4C407000, 1, "ld1 {v0.16b}, [x0]"),
    (0x4C40A800, 4, "ld1 {v0.4s, v1.4s}, [x0]"),
    (0x4C9F7C00, 8, "st1 {v0.2d}, [x0], #16"),
    (0x4C400400, 2, "ld4 {v0.8h, v1.8h, v2.8h, v3.8h}, [x0]"),
    (0x0D400400, 1, "ld1 {v0.b}[1], [x0]"),
    (0x0D404800, 2, "ld1 {v0.h}[1], [x0]"),
    (0x0D409000, 4, "ld1 {v0.s}[1], [x0]"),
    (0x4D408400, 8, "ld1 {v0.d}[1], [x0]"),
    (0x4D40C800, 4, "ld1r {v0.4s}, [x0]"),
    (0xC85F7C01, 8, "ldxr x1, [x0]"),
    (0x085F7C01, 1, "ldxrb w1, [x0]"),
    (0x88037C01, 4, "stxr w3, w1, [x0]"),
    (0xC87F0801, 8, "ldxp x1, x2, [x0]"),
    (0x887F0801, 4, "ldxp w1, w2, [x0]"),
    (0xC8DFFC01, 8, "ldar x1, [x0]"),
    (0x489FFC01, 2, "stlrh w1, [x0]"),
]
OTHERS = [
    (0x91000400, "add x0, x0, #1"),
    (0x5E024020, "sha256h q0, q1, v2.4s"),
    (0xD50B7420, "dc zva, x0"),
    (0x14000000, "b #0"),
]
# Those whose alignment is all that can be wrong with them.
PLAIN = [(word, size, text) for word, size, text in LOADS_AND_STORES if "x" not in text.split()[0]]


def violations(guest, *words, address=DATA, cpacr=FP_ON):
    """Run a program that ends in WFI with x0 = address."""
    cpu = guest.start(*words, 0xD503207F)
    cpu.set_x(0, address)
    cpu.set_sysreg("CPACR_EL1", cpacr)
    with AccessChecker(cpu) as checker:
        assert cpu.run(limit=10_000).kind == "idle"
    return checker.violations


@pytest.mark.parametrize(("word", "text"), [(w, t) for w, _, t in LOADS_AND_STORES] + OTHERS)
def test_capstone_reads_the_words_as_they_are_named_here(word, text):
    (found,) = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM).disasm(word.to_bytes(4, "little"), 0)
    assert f"{found.mnemonic} {found.op_str}" == text


@pytest.mark.parametrize(("word", "size", "text"), LOADS_AND_STORES)
def test_the_size_that_alignment_counts_from_is_the_elements(word, size, text):
    assert element_size(word) == size


@pytest.mark.parametrize(("word", "text"), OTHERS)
def test_what_is_no_load_or_store_has_no_element(word, text):
    assert element_size(word) is None


@pytest.mark.parametrize(("word", "size", "text"), PLAIN)
def test_an_access_is_accused_exactly_when_it_is_not_aligned_to_its_element(guest, word, size, text):
    offset = 8 if "#8]" in text else 0
    for address in range(DATA, DATA + 32):
        found = violations(guest, word, address=address)
        if (address + offset) % size:
            assert found == [Violation(0x40000000, "unaligned", address + offset, size, text)]
        else:
            assert found == []


def test_a_literal_is_an_access_like_any_other(guest):
    # ldr x1, .+12 at 0 and ldr x1, .+8 at 4: both load from 12.
    assert [one.address for one in violations(guest, 0x58000061, 0x58000041)] == [0x4000000C, 0x4000000C]
    assert violations(guest, 0x58000041) == []


def test_an_instruction_is_named_once_however_often_it_runs(guest, a64):
    loop = [a64.movz(2, 5), a64.load(1, 0), a64.sub(2, 2, 1), a64.cbnz(2, -8)]
    assert [one.pc for one in violations(guest, *loop, address=DATA + 4)] == [0x40000004]


def test_dc_zva_is_named_with_its_address(guest):
    assert violations(guest, 0xD50B7420) == [Violation(0x40000000, "dc zva", DATA, 1, "dc zva, x0")]


@pytest.mark.parametrize("word", [0xC85F7C01, 0x085F7C01, 0xC87F0801, 0x885FFC01])
def test_a_load_exclusive_is_named(guest, word):
    (found,) = violations(guest, word)
    assert (found.kind, found.address) == ("exclusive", DATA)


def test_a_store_exclusive_is_named_as_well(guest):
    found = violations(guest, 0xC85F7C01, 0xC8037C01)
    assert [(one.kind, one.text) for one in found] == [
        ("exclusive", "ldxr x1, [x0]"),
        ("exclusive", "stxr w3, x1, [x0]"),
    ]


def test_load_acquire_and_store_release_are_no_exclusives(guest):
    assert violations(guest, 0xC8DFFC01, 0x489FFC01) == []


@pytest.mark.parametrize(("fpen", "trapped"), [(0, True), (1, False), (2, True), (3, False)])
@pytest.mark.parametrize("word", [0x5E024020, 0x3DC00000, 0x4C407000, 0x9E670000])
def test_fp_and_simd_are_named_while_cpacr_traps_them(guest, word, fpen, trapped):
    found = violations(guest, word, cpacr=fpen << 20)
    assert [(one.pc, one.kind) for one in found] == ([(0x40000000, "fp trap")] if trapped else [])


def test_code_that_enables_fp_for_itself_is_not_accused(guest, a64):
    enable = [a64.movz(1, FP_ON >> 16, 16), a64.msr("CPACR_EL1", 1), a64.ISB]
    assert violations(guest, *enable, 0x4C407000, cpacr=0) == []


def test_what_is_not_executed_is_not_accused(guest, a64):
    assert violations(guest, a64.b(8), 0xF9400001, address=DATA + 1) == []
    guest.start(a64.b(0x1000))
    guest.words(a64.CODE + 0x1000, 0x9E670000, a64.WFI)
    with AccessChecker(guest.cpu) as checker:
        assert guest.cpu.run(within=range(a64.CODE, a64.CODE + 0x1000)).kind == "left"
    assert checker.violations == []


def test_with_the_mmu_on_no_access_is_accused_until_it_is_off_again(guest, a64):
    fmt = TableFormat(Granule.K4, 39)
    program = [
        a64.load(1, 0),
        0xD50B7420,
        a64.mrs(2, "SCTLR_EL1"),
        a64.sub(2, 2, 1),
        a64.msr("SCTLR_EL1", 2),
        a64.ISB,
        a64.store(1, 0),
        a64.WFI,
    ]
    cpu = guest.start(*program)
    cpu.set_x(0, DATA + 4)
    guest.mmu_on(guest.tables(fmt), fmt)
    with AccessChecker(cpu) as checker:
        assert cpu.run(limit=1000).kind == "idle"
    assert [(one.kind, one.text) for one in checker.violations] == [("unaligned", "str x1, [x0]")]


def test_the_guest_does_the_same_with_and_without_it(guest, a64):
    program = [a64.load(1, 0), a64.add(1, 1, 1), a64.store(1, 0), 0x4C407000]
    states = []
    for watch in (False, True):
        guest.ram.write(DATA, bytes(range(64)))
        if watch:
            violations(guest, *program, address=DATA + 1)
        else:
            cpu = guest.start(*program, a64.WFI)
            cpu.set_x(0, DATA + 1)
            cpu.set_sysreg("CPACR_EL1", FP_ON)
            cpu.run()
        states.append((guest.cpu.registers(), guest.ram.read(DATA, 64)))
    assert states[0] == states[1]


def test_once_left_it_sees_nothing_more(guest, a64):
    cpu = guest.start(a64.WFI, a64.load(1, 0), a64.WFI)
    cpu.set_x(0, DATA + 1)
    with AccessChecker(cpu) as checker:
        cpu.run()
    cpu.run()
    assert checker.violations == []


def test_an_endless_branch_is_left_to_run_at_full_speed(guest, a64):
    cpu = guest.start(a64.load(1, 0), a64.b(0))
    cpu.set_x(0, DATA + 1)
    with AccessChecker(cpu) as checker:
        assert cpu.run(limit=20_000_000).kind == "deadline"  # a Python call for each would take a minute
        cpu.pc = a64.CODE
        assert cpu.run(limit=10).kind == "deadline"
    assert [one.kind for one in checker.violations] == ["unaligned"]
    assert len(violations(guest, a64.load(2, 0), address=DATA + 1)) == 1


def test_the_environment_variable_turns_a_violation_into_an_error(guest, a64, monkeypatch):
    def run(**options):
        cpu = guest.start(a64.load(1, 0), 0xD50B7420, a64.WFI)
        cpu.set_x(0, DATA + 1)
        with checked(cpu, **options):
            cpu.run()

    monkeypatch.delenv("KEXECEMU_CHECK_ACCESSES", raising=False)
    run()
    monkeypatch.setenv("KEXECEMU_CHECK_ACCESSES", "1")
    run(intact=False)
    with pytest.raises(
        MachineError, match=r"silicon refuses: ldr x1, \[x0\] at 0x40000000: not aligned to 8"
    ):
        run()

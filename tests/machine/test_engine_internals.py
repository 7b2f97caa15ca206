"""The fields of the engine's own structs: they are there, and do what the steppers build on."""

from __future__ import annotations

import struct

import pytest
from machine import system_guest as g
from machine.system_guest import DAIFCLR_I, DAIFSET_I, NOP, WFI, add
from unicorn.arm64_const import UC_ARM64_REG_ELR_EL1, UC_ARM64_REG_PC, UC_ARM64_REG_VBAR_EL1, UC_ARM64_REG_X0
from unicorn.unicorn_py3.arch.arm64 import UcAArch64

from kexecemu.machine.cpu.engine import HCR_EL2, SCR_EL3, open_engine
from kexecemu.machine.cpu.engine_internals import Internals, between_blocks_of, offsets

BLOCK = [*[add(0, 0, 1)] * 7, g.b(1)]


def engine(*words: int) -> UcAArch64:
    uc = open_engine()
    uc.cpr_write(3, 6, 1, 1, 0, SCR_EL3)
    uc.cpr_write(3, 4, 1, 1, 0, HCR_EL2)
    uc.mem_map(0, 0x10000)
    uc.mem_write(0, struct.pack(f"<{len(words)}I", *words))
    uc.mem_write(0x8000, struct.pack("<I", NOP) * 0x2000)
    uc.reg_write(UC_ARM64_REG_VBAR_EL1, 0x8000)
    return uc


def test_the_fields_are_found_and_apart() -> None:
    found = offsets()
    assert len({found.counter, found.limit, found.no_exit_request, found.cpu}) == 4
    assert found.counter % 8 == found.limit % 8 == found.cpu % 8 == 0


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100])
def test_code_that_stops_between_blocks_only_runs_on_to_the_end_of_its_block(count: int) -> None:
    uc = engine(*BLOCK * 100)
    between_blocks_of(uc).value = 1
    inside = Internals(uc)
    uc.emu_start(0, 0, count=count)
    # The count stops before the instruction behind it: where that begins a block, this block runs too.
    blocks = count // 8 + 1
    assert uc.reg_read(UC_ARM64_REG_PC) == 4 * 8 * blocks
    assert inside.done.value == 8 * blocks


@pytest.mark.parametrize("access", [g.str_w(0, 1), g.ldr_w(2, 1)], ids=["store", "load"])
def test_such_code_may_be_stopped_from_a_device_and_the_access_is_made_once(access: int) -> None:
    # Elsewhere this is the stop that must never be asked for: the access would be made again.
    body = [*g.mov(1, 0x100000), *[add(0, 0, 1)] * 5, access, *[add(0, 0, 1)] * 5, g.b(1)]
    uc = engine(*body, *[add(0, 0, 1)] * 50)
    between_blocks_of(uc).value = 1
    accesses = []

    def load(uc, offset, size, _):
        accesses.append("load")
        uc.emu_stop()
        return 7

    def store(uc, offset, size, value, _):
        accesses.append(value)
        uc.emu_stop()

    uc.mmio_map(0x100000, 0x1000, load, None, store, None)
    uc.emu_start(0, 0, count=1000)
    assert accesses in ([5], ["load"])
    assert uc.reg_read(UC_ARM64_REG_X0) == 10
    assert uc.reg_read(UC_ARM64_REG_PC) == 4 * len(body)
    assert Internals(uc).done.value == len(body)


def test_the_same_code_can_be_had_in_both_forms() -> None:
    uc = engine(*BLOCK * 100)
    inside = Internals(uc)
    for _ in range(3):
        inside.between_blocks.value, inside.variant.value = 1, 1
        uc.emu_start(0, 0, count=3)
        assert uc.reg_read(UC_ARM64_REG_PC) == 32
        inside.between_blocks.value, inside.variant.value = 0, 0
        uc.emu_start(0, 0, count=3)
        assert uc.reg_read(UC_ARM64_REG_PC) == 12


def test_dropping_code_drops_it_in_both_forms() -> None:
    uc = engine(*BLOCK)
    inside = Internals(uc)
    for variant in (0, 1):
        inside.variant.value = variant
        uc.emu_start(0, 0, count=3)
    uc.mem_write(0, struct.pack("<I", add(0, 0, 100)))
    uc.ctl_remove_cache(0, 64)
    for variant in (0, 1):
        inside.variant.value = variant
        uc.reg_write(UC_ARM64_REG_X0, 0)
        uc.emu_start(0, 0, count=3)
        assert uc.reg_read(UC_ARM64_REG_X0) == 102


def test_the_cpu_takes_an_interrupt_that_is_requested_where_it_is_unmasked() -> None:
    uc = engine(DAIFSET_I, *[add(0, 0, 1)] * 5, DAIFCLR_I, *[add(0, 0, 1)] * 50)
    inside = Internals(uc)
    uc.emu_start(0, 0, count=1)
    inside.interrupt_request.value = Internals.INTERRUPT_IRQ
    uc.emu_start(4, 0, count=16)
    assert uc.reg_read(UC_ARM64_REG_X0) == 5
    assert uc.reg_read(UC_ARM64_REG_ELR_EL1) == 7 * 4
    assert (
        uc.reg_read(UC_ARM64_REG_PC) == 0x8280 + 4 * 10
    )  # the vector of an interrupt at EL1 with its own stack


def test_a_wait_halts_unless_an_interrupt_is_requested() -> None:
    uc = engine(DAIFSET_I, WFI, *[NOP] * 50)
    inside = Internals(uc)
    uc.emu_start(0, 0, count=10)
    assert (inside.halted.value, uc.reg_read(UC_ARM64_REG_PC)) == (1, 8)
    inside.interrupt_request.value = Internals.INTERRUPT_IRQ
    uc.emu_start(0, 0, count=10)
    assert (inside.halted.value, uc.reg_read(UC_ARM64_REG_PC)) == (0, 40)

"""The block counter: both forms alike, and exact against the engine's own single stepping."""

from __future__ import annotations

import ctypes
import platform
import re
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import (
    UC_ARCH_ARM64,
    UC_CTL_IO_WRITE,
    UC_CTL_TLB_FLUSH,
    UC_HOOK_INTR,
    UC_MODE_ARM,
    Uc,
    UcError,
    arm64_const,
)
from unicorn.arm64_const import UC_ARM64_REG_PC, UC_ARM64_REG_PSTATE, UC_ARM64_REG_X0, UC_CPU_ARM64_A57

from kexecemu.machine.board import Board
from kexecemu.machine.cpu import blockcount, python_hooks
from kexecemu.machine.cpu.blockcount import BlockCount, library_path
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.ranges import PhysRange

RAM = PhysRange.of(0x40000000, 1 << 20)
CODE = RAM.start
DATA = RAM.start + 0x8000
NOWHERE = 0x1000000
WFI = 0xD503207F


def instruction(draw_kind: int, rd: int, rn: int, value: int) -> int:
    """One of a few harmless instructions; branches go forward only, so that every program ends."""
    registers = rd % 4, rn % 4
    match draw_kind:
        case 0:
            return 0x91000000 | value % 4096 << 10 | registers[1] << 5 | registers[0]  # add
        case 1:
            return 0xF1000000 | value % 4096 << 10 | registers[1] << 5 | registers[0]  # subs
        case 2:
            return 0xF9000000 | value % 64 << 10 | 8 << 5 | registers[0]  # str to the data page (x8)
        case 3:
            return 0xF9400000 | value % 64 << 10 | 8 << 5 | registers[0]  # ldr from it
        case 4:
            return 0xB4000000 | (1 + value % 4) << 5 | registers[0]  # cbz, 1 to 4 instructions ahead
        case 5:
            return 0x54000000 | (1 + value % 4) << 5 | value % 14  # b.cond
        case 6:
            return 0x14000000 | 1 + value % 3  # b
        case 7:
            return 0xD2800000 | value % 65536 << 5 | registers[0]  # mov
        case 8:
            return 0xF9400000 | 9 << 5 | registers[0]  # ldr from nowhere (x9): ends the program
        case 9:
            return 0xD4200000  # brk: ends it too
    return 0xD503201F


# Faults are rare, or hardly any program would get anywhere.
KINDS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7] * 4 + [8, 9])
PROGRAMS = st.lists(
    st.builds(instruction, KINDS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 65535)), max_size=60
).map(lambda words: [*words, *[WFI] * 5])


def single_step(words: list[int]) -> tuple[int, int, list[int]]:
    """Instructions retired, last PC and x0 to x3, by Unicorn's count=1 alone."""
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM, cpu=UC_CPU_ARM64_A57)
    uc.mem_map(RAM.start, RAM.size)
    uc.mem_write(CODE, struct.pack(f"<{len(words)}I", *words))
    uc.reg_write(UC_ARM64_REG_PSTATE, 0x3C5)
    uc.reg_write(UC_ARM64_REG_X0 + 8, DATA)
    uc.reg_write(UC_ARM64_REG_X0 + 9, NOWHERE)
    uc.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)
    faulted = []
    uc.hook_add(UC_HOOK_INTR, lambda uc, number, _: (faulted.append(number), uc.emu_stop()))
    retired, pc = 0, CODE
    while not faulted:
        word = struct.unpack("<I", uc.mem_read(pc, 4))[0]
        try:
            uc.emu_start(pc, 0, count=1)
        except UcError:
            break
        if faulted:
            break
        retired += 1
        pc = uc.reg_read(UC_ARM64_REG_PC)
        if word == WFI:
            break
    return retired, pc, [uc.reg_read(UC_ARM64_REG_X0 + n) for n in range(4)]


def count_blocks(words: list[int], *, native: bool, limit: int | None = None):
    with pytest.MonkeyPatch.context() as patch:
        if native:
            patch.delenv("KEXECEMU_NO_NATIVE", raising=False)
        else:
            patch.setenv("KEXECEMU_NO_NATIVE", "1")
        board = Board([RAM])
        cpu = board.boot_cpu
        board.ram.write(CODE, struct.pack(f"<{len(words)}I", *words))
        cpu.reset(CODE)
        cpu.set_x(8, DATA)
        cpu.set_x(9, NOWHERE)
        assert cpu._engine.counter.native is native
        stops = []
        while True:
            stop = cpu.run(deliver=False, limit=limit)
            stops.append(stop)
            if stop.kind is not CpuStopKind.DEADLINE:
                break
        state = cpu.registers()
        data = board.ram.read(DATA, 4096)
        total = cpu.instructions
        board.ram.close()
    return total, cpu, stops, state, data


@settings(max_examples=60, deadline=None)
@given(PROGRAMS)
def test_the_count_equals_single_stepping(words):
    retired, pc, low = single_step(words)
    total, _, _, state, _ = count_blocks(words, native=True)
    assert total == retired
    assert state["pc"] == pc
    assert [state[f"x{n}"] for n in range(4)] == low


@settings(max_examples=60, deadline=None)
@given(PROGRAMS, st.one_of(st.none(), st.integers(1, 20)))
def test_the_native_and_the_python_counter_agree_in_everything(words, limit):
    native = count_blocks(words, native=True, limit=limit)
    python = count_blocks(words, native=False, limit=limit)
    assert native[0] == python[0]
    assert native[2:] == python[2:]


def test_a_block_longer_than_the_engine_translates_at_once_is_counted_right():
    words = [0x91000400] * 1500 + [WFI]  # add x0, x0, #1
    total, _, _, state, _ = count_blocks(words, native=True)
    assert (total, state["x0"]) == (1501, 1500)


def test_a_fault_in_the_middle_of_a_long_block_takes_back_the_rest():
    words = [0x91000400] * 300 + [0xF9400120] + [0x91000400] * 300 + [WFI]
    total, _, stops, state, _ = count_blocks(words, native=True)
    assert (total, state["x0"], stops[-1].kind) == (300, 300, CpuStopKind.FAULT)


def test_c_and_python_agree_on_the_struct_and_on_unicorns_numbers(tmp_path):
    source = library_path().with_name("blockcount.c")
    claims = [
        f"__builtin_offsetof(struct blockcount, {name}) == {getattr(BlockCount, name).offset}"
        for name, _ in BlockCount._fields_
    ]
    claims.append(f"sizeof(struct blockcount) == {ctypes.sizeof(BlockCount)}")
    names = re.findall(r"^#define REG_(\w+)", source.read_text(), re.MULTILINE)
    assert len(names) > 10
    claims += [f"REG_{name} == {getattr(arm64_const, f'UC_ARM64_REG_{name}')}" for name in names]
    claims += [
        f"FILTER_BITS == {blockcount.FILTER_BITS}",
        f"INSTRUCTIONS_PER_TICK == {blockcount.INSTRUCTIONS_PER_TICK}",
        f"STALE_LINES == {blockcount.STALE_LINES}",
        f"LINE_MARKS == {blockcount.LINE_MARKS}",
        f"1 << LINE_SHIFT == {blockcount.LINE_SIZE}",
        *(f"WHY_{why.name} == {why.value}" for why in blockcount.BlockStop),
    ]
    check = tmp_path / "check.c"
    check.write_text(
        f'#include "{source}"\n' + "".join(f'_Static_assert({claim}, "{claim}");\n' for claim in claims)
    )
    command = [sys.executable, "-m", "ziglang", "cc", "-c", str(check), "-o", str(tmp_path / "check.o")]
    subprocess.run(command, check=True)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no native counter for this host")
def test_a_native_counter_ships_for_this_host():
    assert library_path().exists()


def test_without_the_library_the_python_counter_takes_over(monkeypatch, tmp_path):
    monkeypatch.delenv("KEXECEMU_NO_NATIVE", raising=False)
    monkeypatch.setattr(blockcount, "library_path", lambda: tmp_path / "none.so")
    board = Board([RAM])
    board.boot_cpu.reset(CODE)
    assert board.boot_cpu._engine.counter.native is False


def test_an_error_in_the_python_counter_is_not_swallowed(monkeypatch):
    monkeypatch.setenv("KEXECEMU_NO_NATIVE", "1")

    def broken(self, uc, virt, size, _):
        raise ArithmeticError("lost count")

    monkeypatch.setattr(python_hooks.PythonHooks, "_on_block", broken)
    board = Board([RAM])
    board.boot_cpu.reset(CODE)
    with pytest.raises(ArithmeticError, match="lost count"):
        board.boot_cpu.run(limit=10)


def test_the_libraries_are_what_the_source_builds_to():
    pytest.importorskip("ziglang", reason="the pinned compiler is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "kexecemu.machine.cpu.build_blockcount", "--check"],
        cwd=library_path().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

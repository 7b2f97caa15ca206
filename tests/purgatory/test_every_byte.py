"""No byte of a hashed segment can change unnoticed: all of a small image, and a sample of a large one."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from unicorn import UC_ARCH_ARM64, UC_HOOK_CODE, UC_MODE_ARM, Uc
from unicorn import arm64_const as arm64
from unicorn.arm64_const import UC_CPU_ARM64_A57

from tests.purgatory.conftest import (
    DTB,
    KERNEL_ENTRY,
    PURGATORY,
    RAM,
    RAM_SIZE,
    SHIPPED,
    Bench,
    El,
    Mode,
    Region,
    enter_el,
    load,
)

pytestmark = pytest.mark.slow  # tens of thousands of runs

MATCH, MISMATCH = 2, 3


@dataclass
class Rig:
    """One engine that is entered again and again, with the purgatory's data as loaded each time."""

    uc: Uc
    bench: Bench
    image: bytes

    def check(self) -> int:
        """Enter by the contract, and return the state that the verdict ends with."""
        symbols = self.bench.loaded.symbols
        uc = self.uc
        data = symbols["purgatory_verdict"][0]
        uc.mem_write(data, self.image[data - PURGATORY : len(self.bench.loaded.image)])
        enter_el(uc, El.EL1)
        uc.reg_write(arm64.UC_ARM64_REG_X0, DTB)
        uc.emu_start(symbols["purgatory_start"][0], 0)
        at_kernel = uc.reg_read(arm64.UC_ARM64_REG_PC) == KERNEL_ENTRY
        state: int = struct.unpack("<I", uc.mem_read(data + 12, 4))[0]
        assert at_kernel == (state == MATCH)
        return state


@contextmanager
def rig(mode: Mode, segments: list[Region], path: Path) -> Iterator[Rig]:
    """A machine with seeded bytes in `segments`, their digest in the purgatory, and no console."""
    bench = Bench(load(path, PURGATORY), PURGATORY)
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM, cpu=UC_CPU_ARM64_A57)
    uc.ctl_exits_enabled(True)
    uc.mem_map(RAM, RAM_SIZE)
    source = random.Random(1)
    digest = hashlib.sha256()
    for phys, size in segments:
        data = source.randbytes(size)
        uc.mem_write(phys, data)
        digest.update(data)
    symbols = {
        "purgatory_no_mmu": struct.pack("<Q", not mode.mmu),
        "purgatory_no_crypto": struct.pack("<Q", not mode.crypto),
    }
    image = bench.image_with(segments, digest.digest(), KERNEL_ENTRY, 0, symbols)
    uc.mem_write(PURGATORY, image)
    for end in (bench.loaded.symbols["purgatory_stop"][0], KERNEL_ENTRY):
        uc.hook_add(UC_HOOK_CODE, lambda uc, *_: uc.emu_stop(), begin=end, end=end)
    made = Rig(uc, bench, image)
    assert made.check() == MATCH
    yield made
    assert made.check() == MATCH  # the last flip was taken back, and nothing else has changed


def flip(uc: Uc, phys: int, bit: int) -> None:
    """Invert one bit."""
    uc.mem_write(phys, bytes([uc.mem_read(phys, 1)[0] ^ 1 << bit]))


def test_a_flip_in_any_byte_of_a_small_image_is_detected() -> None:
    """Kernel, core header, initrd and device tree of a page each: all 16384 bytes, one after the other."""
    segments = [(RAM + 0x10000 * i, 4096) for i in range(1, 5)]
    with rig(Mode(), segments, SHIPPED) as machine:
        missed = []
        for start, size in segments:
            for phys in range(start, start + size):
                flip(machine.uc, phys, phys % 8)
                if machine.check() != MISMATCH:
                    missed.append(phys)
                flip(machine.uc, phys, phys % 8)
        assert missed == []


@pytest.mark.parametrize(
    "mode", [Mode(mmu=mmu, crypto=crypto) for mmu in (True, False) for crypto in (True, False)], ids=str
)
def test_flips_sampled_from_a_large_image_are_detected(mode: Mode) -> None:
    segments = [(RAM + 0x1000, 0x100000), (RAM + 0x140000, 0x40000), (RAM + 0x1FF000, 0x1000)]
    with rig(mode, segments, SHIPPED) as machine:
        source = random.Random(2)
        for _ in range(40):
            start, size = source.choice(segments)
            phys, bit = start + source.randrange(size), source.randrange(8)
            flip(machine.uc, phys, bit)
            assert machine.check() == MISMATCH, hex(phys)
            flip(machine.uc, phys, bit)


def test_the_first_and_last_byte_of_every_segment_count() -> None:
    segments = [(RAM + 0x1000 * (2 * i + 1), 4096) for i in range(16)]
    with rig(Mode(), segments, SHIPPED) as machine:
        for start, size in segments:
            for phys in (start, start + size - 1):
                flip(machine.uc, phys, 7)
                assert machine.check() == MISMATCH, hex(phys)
                flip(machine.uc, phys, 7)

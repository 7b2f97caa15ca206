# SPDX-License-Identifier: GPL-2.0-or-later
"""What the dying kernel does about a purgatory: compares it, has it check early, goes on when it comes back.

The purgatory is a few instructions that note how they were entered, spoil what a called function may spoil, and return.
"""

from __future__ import annotations

import hashlib
import struct

import pytest

PURGATORY_PHYS, NOTES_PHYS, DTB_PHYS = 0x43100000, 0x43200000, 0x43400000
SCTLR_MMU_OFF = 0x30500800
DAIF = 0x3C0


def stp(first: int, second: int, offset: int) -> int:
    """stp xFIRST, xSECOND, [x9, #OFFSET]"""
    return 0xA9000000 | (offset // 8 << 15) | (second << 10) | (9 << 5) | first


def code(answer: int) -> bytes:
    """Notes x0-x3, x30, its entries, SCTLR_EL1 and DAIF; returns `answer`."""
    words = [
        0xD2A00009 | (NOTES_PHYS >> 16 << 5),  # movz x9, #..., lsl #16
        stp(0, 1, 0),
        stp(2, 3, 16),
        0xD538100A,  # mrs x10, sctlr_el1
        0xD53B422B,  # mrs x11, daif
        stp(10, 11, 32),
        0xF9401D2C,  # ldr x12, [x9, #56]
        0x9100058C,  # add x12, x12, #1
        stp(30, 12, 48),
        *(0x92800000 | number for number in range(1, 19)),  # mov xN, #-1
        0xD2800000 | (answer << 5),  # mov x0, #answer
        0xD65F03C0,  # ret
    ]
    return struct.pack(f"<{len(words)}I", *words)


def notes(guest):
    names = ("x0", "x1", "x2", "x3", "sctlr", "daif", "x30", "entries")
    return dict(zip(names, struct.unpack("<8Q", guest.ram.read(NOTES_PHYS, 64)), strict=True))


@pytest.fixture
def loaded(start_guest):
    """A guest with two CPUs, idle, a crash image loaded, and a purgatory that finds nothing wrong."""
    guest = start_guest(cpus=2)
    assert guest.boot() == "idle"
    guest.load_crash_image()
    guest.ram.write(PURGATORY_PHYS, code(0))
    guest.calls.clear()
    guest.console = ""
    return guest


def arch(guest, member: str) -> int:
    offset = guest.member("kimage", "arch") + guest.member("kimage_arch", member)
    return guest.virt("crash_kimage_storage") + offset


def guard(guest, size: int | None = None) -> None:
    size = len(code(0)) if size is None else size
    guest.set_u64(arch(guest, "purgatory_mem"), PURGATORY_PHYS)
    guest.set_u64(arch(guest, "purgatory_size"), size)
    digest = hashlib.sha256(guest.ram.read(PURGATORY_PHYS, size)).digest()
    guest.ram.write(guest.phys(arch(guest, "purgatory_digest")), digest)


def enter_by(guest, member: str) -> None:
    """The purgatory's code is its early check, or what the image starts with."""
    if member == "purgatory_check":
        guest.set_u64(arch(guest, "purgatory_check"), PURGATORY_PHYS)
    else:
        guest.set_u64(arch(guest, "purgatory_mem"), PURGATORY_PHYS)
        guest.set_u64(guest.virt("crash_kimage_storage") + guest.member("kimage", "start"), PURGATORY_PHYS)


@pytest.mark.parametrize("size", [1, 55, 56, 64, 100, 4096, 12345])
def test_an_intact_purgatory_of_any_size_is_started(loaded, size):
    guard(loaded, size)
    assert loaded.call("write_sysrq_trigger") == "capture"
    assert [loaded.boot_cpu.x(n) for n in range(4)] == [DTB_PHYS, 0, 0, 0]
    assert "giving up" not in loaded.console


@pytest.mark.parametrize("at", [0, 63, 64, 4095])
def test_a_purgatory_with_one_other_bit_is_not_started_and_the_panic_goes_on(loaded, at):
    guard(loaded, 4096)
    (byte,) = loaded.ram.read(PURGATORY_PHYS + at, 1)
    loaded.ram.write(PURGATORY_PHYS + at, bytes([byte ^ 1]))
    assert loaded.call("write_sysrq_trigger") == "panic_no_kexec"
    assert loaded.console.endswith("Bye!\nkexec: the purgatory has been damaged, giving up kdump\n")
    assert loaded.string(loaded.u64("kdump_refusal")) == "the purgatory has been damaged"


def test_what_lies_behind_the_guarded_bytes_may_change(loaded):
    guard(loaded, 100)
    loaded.ram.write(PURGATORY_PHYS + 100, b"\xff")
    assert loaded.call("write_sysrq_trigger") == "capture"


def test_the_early_check_is_entered_as_the_image_would_be_but_with_a_way_back(loaded):
    enter_by(loaded, "purgatory_check")
    assert loaded.call("write_sysrq_trigger") == "capture"
    seen = notes(loaded)
    assert [seen[f"x{n}"] for n in range(4)] == [DTB_PHYS, 0, 0, 0]
    assert (seen["sctlr"], seen["daif"], seen["entries"]) == (SCTLR_MMU_OFF, DAIF, 1)
    assert loaded.phys("__idmap_text_start") <= seen["x30"] < loaded.phys("__idmap_text_end")


def test_an_early_check_that_fails_leaves_the_kernel_and_its_cpus_as_they_were(loaded):
    enter_by(loaded, "purgatory_check")
    loaded.ram.write(PURGATORY_PHYS, code(1))
    sctlr, ttbr0 = loaded.boot_cpu.cp("SCTLR_EL1"), loaded.boot_cpu.cp("TTBR0_EL1")
    assert loaded.call("write_sysrq_trigger") == "panic_no_kexec"
    assert loaded.console.endswith("kexec: the early check has failed, giving up kdump\n")
    assert [name for name in loaded.called() if name != "_printk"] == ["dump_stack", "panic_no_kexec"]
    cpu = loaded.boot_cpu
    assert (cpu.cp("SCTLR_EL1"), cpu.cp("TTBR0_EL1")) == (sctlr, ttbr0)
    assert cpu.pstate & DAIF == 0xC0  # as panic() had them: IRQ and FIQ only


def test_a_damaged_purgatory_is_not_even_asked(loaded):
    enter_by(loaded, "purgatory_check")
    guard(loaded)
    loaded.ram.write(PURGATORY_PHYS + len(code(0)) - 8, code(1)[-8:])
    assert loaded.call("write_sysrq_trigger") == "panic_no_kexec"
    assert notes(loaded)["entries"] == 0


def test_a_purgatory_that_returns_is_entered_as_ever_and_the_panic_goes_on(loaded):
    enter_by(loaded, "start")
    sctlr, ttbr0 = loaded.boot_cpu.cp("SCTLR_EL1"), loaded.boot_cpu.cp("TTBR0_EL1")
    assert loaded.call("write_sysrq_trigger") == "panic_no_kexec"
    assert loaded.console.endswith(
        "Bye!\nkexec: the purgatory has refused the crash image, giving up kdump\n"
    )
    seen, cpu = notes(loaded), loaded.boot_cpu
    assert [seen[f"x{n}"] for n in range(4)] == [DTB_PHYS, 0, 0, 0]
    assert (seen["sctlr"], seen["daif"]) == (SCTLR_MMU_OFF, DAIF)
    assert (cpu.cp("SCTLR_EL1"), cpu.cp("TTBR0_EL1")) == (sctlr, ttbr0)


@pytest.mark.parametrize("member", ["purgatory_check", "start"])
def test_what_an_oops_was_refused_its_panic_does_not_try_again(loaded, member):
    enter_by(loaded, member)
    loaded.ram.write(PURGATORY_PHYS, code(1))
    loaded.set_u32("panic_on_oops", 1)
    assert loaded.call("stray_write", 0, loaded.virt("stray_buffer"), 1, 1) == "panic_no_kexec"
    assert notes(loaded)["entries"] == 1
    assert "Kernel panic - not syncing: Oops: Fatal exception\n" in loaded.console

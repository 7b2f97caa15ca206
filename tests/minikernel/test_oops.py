# SPDX-License-Identifier: GPL-2.0-or-later
"""Stray writes, and what the kernel makes of its own faults."""

from __future__ import annotations

import struct

import pytest
from unicorn import UC_HOOK_MEM_WRITE

UNMAPPED = 0xFFFF_8000_4000_0000
TARGET = 0xFFFF_0000_0380_0000
TARGET_PHYS = 0x4380_0000
SIGSEGV = 11


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_stray_write_stores_these_bytes_by_stores_of_this_width_and_nothing_else(guest, width, offset):
    data = bytes(range(1, 25))
    guest.ram.write(guest.phys("stray_buffer"), data)
    guest.ram.write(TARGET_PHYS, b"\xee" * 64)
    stores = []
    guest.boot_cpu.uc.hook_add(
        UC_HOOK_MEM_WRITE,
        lambda _uc, _kind, address, size, _value, _data: stores.append((address, size)),
        begin=TARGET_PHYS,
        end=TARGET_PHYS + 63,
    )
    destination = TARGET + 16 + offset
    assert (
        guest.call("stray_write", destination, guest.virt("stray_buffer"), len(data), width) == "host_return"
    )
    assert stores == [(TARGET_PHYS + 16 + offset + n, width) for n in range(0, len(data), width)]
    assert guest.ram.read(TARGET_PHYS, 64) == (
        b"\xee" * (16 + offset) + data + b"\xee" * (64 - 16 - offset - len(data))
    )


def test_what_is_left_of_a_stray_write_is_stored_by_bytes(guest):
    guest.ram.write(guest.phys("stray_buffer"), b"abcdefghijk")
    guest.call("stray_write", TARGET, guest.virt("stray_buffer"), 11, 8)
    assert guest.ram.read(TARGET_PHYS, 12) == b"abcdefghijk\0"


def test_a_stray_write_that_faults_kills_its_task_only(guest):
    guest.calls.clear()
    assert guest.call("stray_write", UNMAPPED, guest.virt("stray_buffer"), 1, 1) == "make_task_dead"
    assert guest.called() == ["report_kernel_fault", "report_die", "make_task_dead"]
    far, esr, regs = guest.calls[0][2][:3]
    assert far == UNMAPPED
    assert esr >> 26 == 0x25 and esr & 0x40, "a data abort by a write"
    pc = struct.unpack("<Q", guest.ram.read(guest.phys(regs) + 256, 8))[0]
    assert guest.virt("stray_write") <= pc < guest.virt("stray_write") + 0x200
    text, die_esr, die_regs = guest.calls[1][2][:3]
    assert (guest.string(text), die_esr, die_regs) == ("Oops", esr, regs)
    assert guest.calls[2][2][0] == SIGSEGV


@pytest.mark.parametrize("task", ["init_task", "task_init"])
def test_an_oops_of_a_task_that_the_system_cannot_lose_crashes(guest, task):
    guest.load_crash_image()
    assert guest.call("stray_write", UNMAPPED, guest.virt("stray_buffer"), 1, 1, task=task) == "capture"
    assert "Kernel panic" not in guest.console, "crash_kexec() comes before panic() would"


def test_with_panic_on_oops_an_oops_crashes(guest):
    guest.load_crash_image()
    guest.set_u32("panic_on_oops", 1)
    assert guest.call("stray_write", UNMAPPED, guest.virt("stray_buffer"), 1, 1) == "capture"
    saved = next(arguments for _, name, arguments in guest.calls if name == "crash_save_cpu")
    pc = struct.unpack("<Q", guest.ram.read(guest.phys(saved[0]) + 256, 8))[0]
    assert guest.virt("stray_write") <= pc < guest.virt("stray_write") + 0x200, (
        "the registers of the exception"
    )


def test_with_panic_on_oops_and_no_crash_image_panic_follows(guest):
    guest.set_u32("panic_on_oops", 1)
    assert guest.call("stray_write", UNMAPPED, guest.virt("stray_buffer"), 1, 1) == "panic_no_kexec"
    assert "Kernel panic - not syncing: Oops: Fatal exception\n" in guest.console
    assert guest.u32("panic_cpu") == 0


@pytest.mark.parametrize(
    ("instruction", "text"),
    [(0x00000000, "Oops - Undefined instruction"), (0xD4200000, "Oops - BRK")],
)
def test_other_exceptions_die_under_their_own_name(guest, instruction, text):
    guest.ram.write(guest.phys("stray_buffer"), struct.pack("<I", instruction))
    guest.calls.clear()
    assert guest.call("stray_buffer") == "make_task_dead"
    assert guest.called() == ["report_die", "make_task_dead"]
    assert guest.string(guest.calls[0][2][0]) == text


def test_an_external_abort_is_no_paging_request(guest):
    guest.calls.clear()
    guest.boot_cpu.deliver(0x200, 0x96000050, 0xFFFF000000001000)
    assert guest.boot_cpu.run(guest.boot_cpu.pc) == "make_task_dead"
    assert guest.called() == ["report_die", "make_task_dead"]
    assert guest.string(guest.calls[0][2][0]) == "synchronous external abort"


@pytest.mark.parametrize("vector", [0x000, 0x080, 0x100, 0x180, 0x300, 0x380, 0x400, 0x480, 0x600, 0x780])
def test_a_vector_that_nothing_should_use_panics(guest, vector):
    guest.boot_cpu.deliver(vector, 0, 0)
    assert guest.boot_cpu.run(guest.boot_cpu.pc) == "panic_no_kexec"
    assert guest.console.endswith("Kernel panic - not syncing: bad mode\n")


def test_a_backtrace_by_frame_pointers_goes_through_the_exception(guest):
    """Function names by frame records, from panic() back to the caller of the store that faulted."""
    symbols = sorted((virt, name) for name, virt in guest.elf.symbols.items() if not name.startswith("$"))

    def name_of(virt):
        return max(entry for entry in symbols if entry[0] <= virt)[1]

    names = []

    def dump_stack(cpu):
        names.append(name_of(cpu.x(30) - 4))
        frame = cpu.x(29)
        while frame:
            frame, virt = guest.u64(frame), guest.u64(frame + 8)
            names.append(name_of(virt - 4))

    guest.handlers["dump_stack"] = dump_stack
    guest.set_u32("panic_on_oops", 1)
    assert guest.call("stray_write", UNMAPPED, guest.virt("stray_buffer"), 1, 1) == "panic_no_kexec"
    assert names == [
        "panic",
        "die",
        "die_kernel_fault",
        "do_mem_abort",
        "el1h_64_sync_handler",
        "el1h_64_sync",
        "stray_write",
        "host_call",
    ]

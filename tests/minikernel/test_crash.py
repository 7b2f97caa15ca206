# SPDX-License-Identifier: GPL-2.0-or-later
"""From panic() to the jump into the crash image."""

from __future__ import annotations

import struct

import pytest

PC_OFFSET, SP_OFFSET, PSTATE_OFFSET = 256, 248, 264
BR_X8 = 0xD61F0100


@pytest.fixture
def loaded(start_guest):
    """A guest with three CPUs, idle, a crash image loaded."""
    guest = start_guest(cpus=3)
    assert guest.boot() == "idle"
    guest.load_crash_image()
    guest.calls.clear()
    guest.psci_calls.clear()
    guest.console = ""
    return guest


def test_sysrq_reaches_the_crash_image_as_the_boot_protocol_wants(loaded):
    assert loaded.call("write_sysrq_trigger") == "capture"
    cpu = loaded.boot_cpu
    assert [cpu.x(n) for n in range(4)] == [0x43400000, 0, 0, 0]
    assert cpu.pc == loaded.entry_phys
    # MMU, caches and alignment checking off, as INIT_SCTLR_EL1_MMU_OFF of 6.1 has it.
    assert cpu.cp("SCTLR_EL1") == 0x30500800
    assert cpu.pstate & 0x3CF == 0x3C5


def test_the_crash_path_says_and_does_what_linux_does_in_order(loaded):
    loaded.call("write_sysrq_trigger")
    assert loaded.console == (
        "sysrq: Trigger a crash\n"
        "Kernel panic - not syncing: sysrq triggered crash\n"
        "Starting crashdump kernel...\n"
        "Bye!\n"
    )
    calls = [(cpu, name) for cpu, name, _ in loaded.calls if name != "_printk"]
    assert calls == [
        (0, "dump_stack"),
        (0, "crash_save_vmcoreinfo"),
        (0, "crash_smp_send_stop"),
        (1, "crash_save_cpu"),
        (2, "crash_save_cpu"),
        (0, "crash_save_cpu"),
        (0, "machine_kexec_mask_interrupts"),
    ]
    assert loaded.u32("panic_cpu") == 0


def test_the_other_cpus_save_themselves_and_switch_off(loaded):
    interrupted = {index: cpu.pc for index, cpu in loaded.cpus.items()}
    loaded.call("write_sysrq_trigger")
    # Off, but still marked online, as in 6.1: ipi_cpu_crash_stop() leaves the mask, and crash says "CPUS: 3".
    assert loaded.u64("__cpu_online_mask") == 0b111
    assert loaded.u32("waiting_for_crash_ipi") == 0
    assert [call[0] for call in loaded.psci_calls] == [0x84000002, 0x84000002]
    saved = {arguments[1]: arguments[0] for _, name, arguments in loaded.calls if name == "crash_save_cpu"}
    for index in (1, 2):
        regs = loaded.phys(saved[index])
        assert struct.unpack("<Q", loaded.ram.read(regs + PC_OFFSET, 8))[0] == interrupted[index]


def test_the_panicking_cpu_saves_where_it_is(start_guest):
    guest = start_guest()
    guest.boot()
    guest.load_crash_image()
    saved = []
    guest.handlers["crash_save_cpu"] = lambda cpu: saved.append(guest.ram.read(guest.phys(cpu.x(0)), 336))
    guest.call("write_sysrq_trigger")
    (regs,) = saved
    sp, pc, pstate = (struct.unpack_from("<Q", regs, at)[0] for at in (SP_OFFSET, PC_OFFSET, PSTATE_OFFSET))
    x29, x30 = struct.unpack_from("<2Q", regs, 29 * 8)
    stack = guest.u64(guest.virt("task_bash") + guest.member("task_struct", "stack"))
    assert guest.virt("__crash_kexec") < pc < guest.virt("__crash_kexec") + 0x200
    assert guest.virt("__crash_kexec") < x30 < pc  # the last call before was memset(&fixed_regs)
    assert stack < sp <= x29 < stack + 16384
    assert pstate & 0xF == 5
    assert pstate & 0x3C0 == 0xC0  # IRQ and FIQ, masked by panic()


def test_without_a_crash_image_panic_goes_nowhere(guest):
    assert guest.call("write_sysrq_trigger") == "panic_no_kexec"
    assert guest.called()[-2:] == ["dump_stack", "panic_no_kexec"]
    assert "Starting crashdump kernel" not in guest.console


def test_a_panic_on_request_gives_its_reason(loaded):
    loaded.ram.write(loaded.phys("panic_request"), b"hung_task: blocked tasks\0")
    assert loaded.call("panic_on_request", loaded.virt("panic_request")) == "capture"
    assert loaded.console.startswith("Kernel panic - not syncing: hung_task: blocked tasks\n")


def test_the_last_branch_is_in_the_identity_mapped_page(guest):
    branch = guest.virt("cpu_soft_restart_branch")
    assert guest.virt("__idmap_text_start") <= branch < guest.virt("__idmap_text_end")
    assert guest.u32(branch) == BR_X8


def test_an_interrupt_that_nobody_asked_for_changes_nothing(guest):
    for number in range(29):
        guest.boot_cpu.set_x(number, 0x1111_0000_0000 + number)
    before = [guest.boot_cpu.x(n) for n in range(31)], guest.boot_cpu.sp, guest.boot_cpu.pc
    guest.calls.clear()
    assert guest.boot_cpu.take_irq() == "idle"
    assert ([guest.boot_cpu.x(n) for n in range(31)], guest.boot_cpu.sp, guest.boot_cpu.pc) == before
    assert not guest.boot_cpu.pstate & 0x80
    assert guest.called() == []
    preempt_count = guest.u64(guest.virt("init_task") + guest.member("thread_info", "preempt_count"))
    assert preempt_count == 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""From the boot loader's jump to idle CPUs."""

from __future__ import annotations

import pytest

DAIF = 0x3C0
EL1H = 5


def test_the_boot_ends_idle_with_nothing_masked(start_guest):
    guest = start_guest(cpus=2)
    assert guest.boot() == "idle"
    for cpu in guest.cpus.values():
        assert not cpu.pstate & DAIF
        assert cpu.pstate & 0xF == EL1H


def test_the_boot_asks_the_model_in_this_order(guest):
    assert guest.called() == [
        "__create_page_tables",
        "_printk",
        "setup_arch",
        "_printk",
        "_printk",
        "kernel_init_freeable",
    ]


@pytest.mark.parametrize("image_phys", [0x40000000, 0x40200000, 0x41400000])
def test_the_image_boots_wherever_it_was_put(start_guest, image_phys):
    guest = start_guest(image_phys=image_phys, cpus=2)
    assert guest.boot() == "idle"
    assert guest.u64("kimage_voffset") == guest.virt("_text") - image_phys
    assert guest.u64("__cpu_online_mask") == 0b11


def test_what_the_boot_loader_passed_is_kept(start_guest):
    guest = start_guest()
    for number, value in enumerate((0x43400000, 0x11, 0x22, 0x33)):
        guest.boot_cpu.set_x(number, value)
    assert guest.boot_cpu.run(guest.image_phys) == "idle"
    boot_args = [guest.u64(guest.virt("boot_args") + 8 * n) for n in range(4)]
    assert boot_args == [0x43400000, 0x11, 0x22, 0x33]
    assert guest.u64("__fdt_pointer") == 0x43400000


def test_page_tables_are_asked_for_before_the_mmu_is_on(start_guest):
    guest = start_guest()
    seen = []
    create = guest.handlers["__create_page_tables"]

    def handler(cpu):
        seen.append((cpu.pc, cpu.cp("SCTLR_EL1") & 1))
        create(cpu)

    guest.handlers["__create_page_tables"] = handler
    guest.boot()
    assert seen == [(guest.phys("__create_page_tables"), 0)]
    assert guest.boot_cpu.cp("SCTLR_EL1") == guest.u64("init_sctlr_el1")


def test_no_low_address_is_mapped_after_the_boot(start_guest):
    guest = start_guest(cpus=2)
    guest.boot()
    for cpu in guest.cpus.values():
        assert cpu.cp("TTBR0_EL1") == guest.phys("reserved_pg_dir")
    # RAM was mapped there while the identity map was in place; the TLB must have forgotten it.
    source = guest.virt("stray_buffer")
    assert guest.call("stray_write", guest.phys(source), source, 1, 1) == "make_task_dead"


def test_every_present_cpu_comes_online_on_its_own_stack_and_per_cpu_area(start_guest):
    guest = start_guest(cpus=12)
    assert guest.boot() == "idle"
    assert guest.u64("__cpu_online_mask") == (1 << 12) - 1
    assert "smp: Brought up 1 node, 12 CPUs\n" in guest.console
    areas, stacks = set(), set()
    for index, cpu in guest.cpus.items():
        task = cpu.current
        name = "init_task" if index == 0 else "idle_tasks"
        assert task == guest.virt(name) + index * guest.layout["structs"]["task_struct"]["size"]
        assert guest.string(task + guest.member("task_struct", "comm")) == f"swapper/{index}"
        assert guest.u64(guest.per_cpu("runqueues", index) + guest.member("rq", "curr")) == task
        assert guest.u32(guest.per_cpu("cpu_number", index)) == index
        stack = guest.u64(task + guest.member("task_struct", "stack"))
        assert stack % 16384 == 0
        assert stack < cpu.sp < stack + 16384
        assert cpu.cp("VBAR_EL1") == guest.virt("vectors")
        stacks.add(stack)
        areas.add(guest.per_cpu("__per_cpu_start", index))
    assert len(stacks) == len(areas) == 12
    assert all(area % 4096 == 0 for area in areas)


def test_a_cpu_is_started_by_psci_with_its_mpidr_and_a_physical_entry(start_guest):
    guest = start_guest(cpus=2)
    guest.boot()
    assert guest.psci_calls == [(0xC4000003, 1, guest.phys("secondary_entry"), 0)]


def test_a_cpu_that_firmware_refuses_is_left_out(start_guest):
    guest = start_guest(cpus=2)
    guest.psci_result = -2
    assert guest.boot() == "idle"
    assert "CPU1: failed to boot\n" in guest.console
    assert "smp: Brought up 1 node, 1 CPU\n" in guest.console


def test_a_cpu_that_never_arrives_is_reported(start_guest):
    guest = start_guest(cpus=2)
    guest.handlers["wait_for_cpu_running"] = lambda cpu: None
    assert guest.boot() == "idle"
    assert "CPU1: failed to come online\n" in guest.console
    assert guest.u64("__cpu_online_mask") == 1

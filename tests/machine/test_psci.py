"""PSCI, called by guests through HVC."""

from __future__ import annotations

import pytest

from kexecemu.machine.cpu.stop import CpuStopKind


def call(guest, a64, function, *arguments, cpu=None):
    """Run one HVC with the given arguments and then WFI."""
    cpu = guest.start(a64.hvc(), a64.WFI, cpu=cpu)
    for number, value in enumerate((function, *arguments)):
        cpu.set_x(number, value)
    stop = cpu.run()
    return stop, cpu.x(0) - (1 << 64 if cpu.x(0) >> 63 else 0)


@pytest.mark.parametrize(
    ("function", "argument", "answer"),
    [
        (0x84000000, 0, 0x10000),  # PSCI_VERSION 1.0
        (0x80000000, 0, 0x10001),  # SMCCC_VERSION 1.1
        (0x80000001, 0x80008000, -1),  # SMCCC_ARCH_FEATURES(ARCH_WORKAROUND_1)
        (0x80000001, 0x80000000, 0),
        (0x84000006, 0, 2),  # MIGRATE_INFO_TYPE
        (0x8400000A, 0x84000002, 0),  # PSCI_FEATURES(CPU_OFF)
        (0x8400000A, 0xC4000003, 0),  # PSCI_FEATURES(CPU_ON, SMC64)
        (0x8400000A, 0xC4000002, -1),  # CPU_OFF has no SMC64 form
        (0x8400000A, 0x84000001, -1),  # CPU_SUSPEND is not there
        (0x84000001, 0, -1),
        (0xC4000008, 0, -1),  # nor has SYSTEM_OFF
        (0x12345678, 0, -1),
    ],
)
def test_questions_are_answered(guest, a64, function, argument, answer):
    stop, result = call(guest, a64, function, argument)
    assert stop.kind is CpuStopKind.IDLE
    assert result == answer


@pytest.mark.parametrize(
    ("function", "power"), [(0x84000002, "cpu_off"), (0x84000008, "system_off"), (0x84000009, "system_reset")]
)
def test_switching_off_ends_the_run_and_says_how(new_guest, a64, function, power):
    guest = new_guest(2)
    guest.board.cpus[1].reset(a64.CODE)
    stop, _ = call(guest, a64, function)
    assert (stop.kind, stop.power) == (CpuStopKind.POWER, power)
    assert stop.pc == a64.CODE + 4, "behind the HVC"
    assert not guest.cpu.powered
    assert guest.board.cpus[1].powered is (power == "cpu_off")


@pytest.mark.parametrize("function", [0x84000003, 0xC4000003])
def test_cpu_on_starts_a_cpu_as_the_specification_says(new_guest, a64, function):
    guest = new_guest(18)
    entry = a64.CODE + 0x4000
    guest.words(entry, a64.mrs(1, "MPIDR_EL1"), a64.mrs(2, "SCTLR_EL1"), 0xD5384243, 0xD53B4224, a64.WFI)
    stop, result = call(guest, a64, function, 0x101, entry, 0xC0FFEE)
    assert (stop.kind, result) == (CpuStopKind.IDLE, 0)
    cpu = guest.board.cpus[17]
    assert cpu.powered
    assert cpu.run().kind is CpuStopKind.IDLE
    assert cpu.x(0) == 0xC0FFEE
    assert cpu.x(1) == 0x80000101
    assert cpu.x(2) & 0x1005 == 0, "MMU and caches off"
    assert cpu.x(3) == 1 << 2, "CurrentEL is EL1"
    assert cpu.x(4) == 0x3C0, "DAIF masked"


def test_cpu_on_refuses_whom_it_does_not_know_and_who_is_on(new_guest, a64):
    guest = new_guest(2)
    assert call(guest, a64, 0xC4000003, 5, a64.CODE)[1] == -2
    assert call(guest, a64, 0xC4000003, 0, a64.CODE)[1] == -4
    assert call(guest, a64, 0xC4000003, 1, a64.CODE)[1] == 0
    assert call(guest, a64, 0xC4000003, 1, a64.CODE)[1] == -4


def test_affinity_info_tells_who_is_on(new_guest, a64):
    guest = new_guest(2)
    assert call(guest, a64, 0xC4000004, 0, 0)[1] == 0
    assert call(guest, a64, 0xC4000004, 1, 0)[1] == 1
    guest.board.cpus[1].reset(a64.CODE)
    assert call(guest, a64, 0x84000004, 1, 0)[1] == 0
    assert call(guest, a64, 0xC4000004, 9, 0)[1] == -2


def test_an_hvc_counts_as_an_instruction(guest, a64):
    stop, _ = call(guest, a64, 0x84000000)
    assert stop.instructions == 2

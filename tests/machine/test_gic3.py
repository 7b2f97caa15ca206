"""The GICv3 with several CPUs, its lines and its kernels one after the other, against the architecture's rules.

test_gic3_qemu.py holds its registers to QEMU's, test_gic3_board.py runs guests on it.
"""

from __future__ import annotations

import random

import pytest

from kexecemu.machine.devices.gic3 import SPURIOUS, Gic3
from kexecemu.machine.devices.gic3_cpu_interface import (
    AP1R0,
    CTLR,
    DIR,
    EOIR1,
    HPPIR1,
    IAR1,
    IGRPEN1,
    PMR,
    RPR,
    SGI0R,
    SGI1R,
)
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import affinity

GICD_CTLR, TYPER, IGROUPR, ISENABLER, ICENABLER, ISPENDR = 0, 4, 0x80, 0x100, 0x180, 0x200
ISACTIVER, ICACTIVER, IPRIORITYR, ICFGR, IROUTER = 0x300, 0x380, 0x400, 0xC00, 0x6000
REDISTRIBUTOR, SGI_FRAME = 0x20000, 0x10000
IRM = 1 << 40


class Bench:
    """A controller whose interrupts are all enabled in group 1 at priority 0xa0, as Linux sets it up."""

    def __init__(self, cpus: int = 1) -> None:
        self.heard: list[tuple[int, bool]] = []
        self.gic = Gic3(cpus, lambda cpu, level: self.heard.append((cpu, level)))
        self.dist(GICD_CTLR, 2)
        for word in range(1, 9):
            self.dist(IGROUPR + 4 * word, 0xFFFFFFFF)
            self.dist(ISENABLER + 4 * word, 0xFFFFFFFF)
        for intid in range(32, 288, 4):
            self.dist(IPRIORITYR + intid, 0xA0A0A0A0)
        for cpu in range(cpus):
            self.redist(IGROUPR, 0xFFFFFFFF, cpu)
            self.redist(ISENABLER, 0xFFFFFFFF, cpu)
            for intid in range(0, 32, 4):
                self.redist(IPRIORITYR + intid, 0xA0A0A0A0, cpu)
            self.icc(PMR, 0xF0, cpu)
            self.icc(IGRPEN1, 1, cpu)
        assert not self.heard

    def dist(self, offset: int, value: int, size: int = 4) -> None:
        self.gic.distributor.write(offset, size, value)

    def read_dist(self, offset: int, size: int = 4) -> int:
        return self.gic.distributor.read(offset, size)

    def redist(self, offset: int, value: int, cpu: int = 0, size: int = 4) -> None:
        self.gic.redistributors.write(cpu * REDISTRIBUTOR + SGI_FRAME + offset, size, value)

    def read_redist(self, offset: int, cpu: int = 0) -> int:
        return self.gic.redistributors.read(cpu * REDISTRIBUTOR + SGI_FRAME + offset, 4)

    def icc(self, register: int, value: int, cpu: int = 0) -> None:
        assert self.gic.cpu_interface(cpu).write_sysreg(register, value)

    def read_icc(self, register: int, cpu: int = 0) -> int:
        value = self.gic.cpu_interface(cpu).read_sysreg(register)
        assert value is not None
        return value

    def acknowledge(self, cpu: int = 0) -> int:
        return self.read_icc(IAR1, cpu)

    def outputs(self) -> list[int]:
        return [cpu for cpu in range(self.gic.cpus) if self.gic.interfaces[cpu].output]


# -- lines -----------------------------------------------------------------------------------------------------


def test_a_level_interrupts_until_the_device_lets_go_of_its_line():
    bench = Bench()
    line = bench.gic.line(33)
    line(True)
    line(True)
    assert bench.heard == [(0, True)]
    assert bench.acknowledge() == 33
    assert bench.heard == [(0, True), (0, False)], "active: not signalled again"
    bench.icc(EOIR1, 33)
    assert bench.gic.interfaces[0].output, "the line is still high"
    assert bench.acknowledge() == 33
    line(False)
    bench.icc(EOIR1, 33)
    assert not bench.gic.interfaces[0].output
    assert bench.acknowledge() == SPURIOUS


def test_an_edge_is_kept_and_counts_once():
    bench = Bench()
    bench.dist(ICFGR + 8, 2 << 8 * 2)
    bench.gic.set_level(40, True)
    bench.gic.set_level(40, False)
    assert bench.acknowledge() == 40
    bench.gic.set_level(40, True)
    assert bench.read_dist(ISPENDR + 4) == 1 << 8, "active and pending"
    bench.icc(EOIR1, 40)
    assert bench.acknowledge() == 40
    bench.icc(EOIR1, 40)
    assert bench.acknowledge() == SPURIOUS, "the line is high, but that is no edge"


def test_private_interrupts_are_each_cpu_s_own():
    bench = Bench(3)
    bench.gic.line(27, 1)(True)
    assert bench.heard == [(1, True)]
    assert [bench.read_redist(ISPENDR, cpu) for cpu in range(3)] == [0, 1 << 27, 0]
    bench.redist(ICENABLER, 1 << 27, 0)
    assert bench.outputs() == [1], "CPU 0 masked its own"
    assert bench.read_dist(ISPENDR) == 0, "nor has the distributor any"
    assert [bench.acknowledge(cpu) for cpu in range(3)] == [SPURIOUS, 27, SPURIOUS]


@pytest.mark.parametrize(("intid", "cpu"), [(0, 0), (15, 0), (-1, 0), (288, 0), (1023, 0)])
def test_there_are_no_lines_but_those_of_devices(intid, cpu):
    gic = Gic3(1, lambda cpu, level: None)
    with pytest.raises(ValueError, match="no line"):
        gic.line(intid, cpu)
    with pytest.raises(ValueError, match="no line"):
        gic.set_level(intid, True, cpu)


@pytest.mark.parametrize(
    "numbers", [{"cpus": 0}, {"cpus": 124}, {"cpus": 1, "spis": 33}, {"cpus": 1, "spis": 992}]
)
def test_a_controller_that_there_cannot_be_is_refused(numbers):
    with pytest.raises(ValueError):
        Gic3(on_output=lambda cpu, level: None, **numbers)


@pytest.mark.parametrize("spis", [32, 256, 960])
def test_typer_tells_how_many_interrupts_there_are(spis):
    # Not like QEMU before 8.0, which says 32 too few.
    typer = Gic3(1, lambda cpu, level: None, spis=spis).distributor.read(TYPER, 4)
    assert 32 * ((typer & 0x1F) + 1) == 32 + spis


def test_there_are_as_many_redistributors_as_cpus():
    assert Gic3(3, lambda cpu, level: None).redistributors.phys == PhysRange.of(0x080A0000, 0x60000)


def test_redistributors_are_found_by_affinity_as_linux_looks_for_them():
    gic = Gic3(20, lambda cpu, level: None)
    typers = [gic.redistributors.read(cpu * REDISTRIBUTOR + 8, 8) for cpu in range(20)]
    assert [typer >> 32 for typer in typers] == [*range(16), 0x100, 0x101, 0x102, 0x103]
    assert [cpu for cpu, typer in enumerate(typers) if typer & 1 << 4] == [19], "the last one says so"


def test_a_cpu_that_is_made_deaf_hears_nothing_any_more():
    bench = Bench(2)
    for cpu in range(2):
        bench.gic.line(27, cpu)(True)
    bench.gic.disable_cpu_interface(1)
    assert bench.outputs() == [0]


# -- routes ----------------------------------------------------------------------------------------------------


def test_a_shared_interrupt_goes_to_the_cpu_of_its_route():
    bench = Bench(20)
    bench.dist(IROUTER + 8 * 50, 0x102, 8)
    bench.gic.set_level(50, True)
    assert bench.outputs() == [18]
    bench.dist(IROUTER + 8 * 50, 7)
    assert bench.outputs() == [7], "what is pending goes along"
    bench.dist(IROUTER + 8 * 50 + 4, 1)
    assert bench.outputs() == [], "there is no CPU of affinity 1.0.0.7"
    assert bench.read_dist(IROUTER + 8 * 50, 8) == 1 << 32 | 7


def test_a_cpu_that_ends_what_is_no_longer_routed_to_it_goes_on_with_its_own():
    bench = Bench(2)
    for intid in (33, 40):
        bench.gic.set_level(intid, True)
    assert bench.acknowledge(0) == 33
    bench.dist(IROUTER + 8 * 33, 1, 8)
    bench.icc(EOIR1, 33, 0)
    assert bench.outputs() == [0, 1]
    assert [bench.acknowledge(cpu) for cpu in (0, 1)] == [40, 33]


# -- software generated interrupts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "targets"),
    [
        (0b101, [0, 2]),
        (1 << 1, [1]),
        (IRM, [0, *range(2, 20)]),
        (1 << 16 | 0b1001, [16, 19]),
        (1 << 16 | 1 << 9, []),
        (1 << 32 | 1, []),
        (1 << 48 | 1, []),
        (0, []),
    ],
)
def test_an_sgi_goes_to_a_list_of_one_cluster_or_to_all_others(value, targets):
    bench = Bench(20)
    bench.icc(SGI1R, value | 3 << 24, cpu=1)
    assert bench.outputs() == targets
    for cpu in targets:
        assert bench.acknowledge(cpu) == 3


def test_one_sgi_of_several_senders_is_taken_once():
    bench = Bench(3)
    for sender in (1, 2):
        bench.icc(SGI1R, 5 << 24 | 1, sender)
    assert bench.acknowledge() == 5
    bench.icc(EOIR1, 5)
    assert bench.acknowledge() == SPURIOUS


def test_an_sgi_of_the_other_group_does_not_arrive():
    bench = Bench()
    bench.icc(SGI0R, 5 << 24 | 1)
    assert bench.read_redist(ISPENDR) == 0
    bench.redist(IGROUPR, ~(1 << 5) & 0xFFFFFFFF)
    bench.icc(SGI1R, 5 << 24 | 1)
    assert bench.read_redist(ISPENDR) == 0
    bench.icc(SGI0R, 5 << 24 | 1)
    assert bench.read_redist(ISPENDR) == 1 << 5
    assert not bench.gic.interfaces[0].output, "group 0 is FIQ"


def test_affinities_of_a_cluster_are_those_that_one_sgi_reaches():
    assert [affinity(cpu) for cpu in (0, 15, 16, 122)] == [0, 15, 0x100, 0x70A]


# -- one after the other ---------------------------------------------------------------------------------------


def test_with_eoimode_the_end_drops_the_priority_and_dir_deactivates():
    bench = Bench()
    bench.icc(CTLR, 2)
    bench.gic.set_level(33, True)
    assert bench.acknowledge() == 33
    bench.icc(EOIR1, 33)
    assert bench.read_icc(RPR) == 0xFF
    assert bench.read_dist(ISACTIVER + 4) == 2
    assert not bench.gic.interfaces[0].output
    bench.icc(DIR, 33)
    assert bench.read_dist(ISACTIVER + 4) == 0
    assert bench.gic.interfaces[0].output


def test_a_second_kernel_starts_from_a_clean_controller_after_a_crash_in_a_handler():
    """What Linux's distributor and CPU set-up do: deactivate everything, and clear the active priorities."""
    bench = Bench()
    bench.gic.set_level(33, True)
    assert bench.acknowledge() == 33
    for word in range(1, 9):
        bench.dist(ICACTIVER + 4 * word, 0xFFFFFFFF)
    assert bench.read_icc(RPR) == 0xA0
    assert not bench.gic.interfaces[0].output, "the running priority is still that of the handler"
    bench.icc(AP1R0, 0)
    assert bench.gic.interfaces[0].output


def test_a_cpu_that_is_switched_on_again_has_fresh_registers_and_keeps_its_redistributor():
    bench = Bench(2)
    bench.gic.line(27, 1)(True)
    assert bench.outputs() == [1]
    bench.gic.cpu_interface(1).reset_cpu()
    assert bench.outputs() == []
    assert bench.read_icc(PMR, 1) == 0
    bench.icc(PMR, 0xF0, 1)
    bench.icc(IGRPEN1, 1, 1)
    assert bench.acknowledge(1) == 27


def test_a_snapshot_holds_everything():
    bench = Bench(2)
    rng = random.Random(1)
    moments = []
    for _ in range(200):
        intid, cpu = rng.choice([16, 27, 33, 40, 64, 287]), rng.randrange(2)
        bench.gic.set_level(intid, rng.random() < 0.5, cpu)
        bench.dist(IROUTER + 8 * 33, rng.randrange(2), 8)
        bench.icc(SGI1R, rng.randrange(16) << 24 | rng.randrange(4), cpu)
        if rng.random() < 0.5:
            bench.icc(EOIR1, bench.acknowledge(cpu), cpu)
        bench.redist(IPRIORITYR + rng.randrange(32), rng.choice([0, 0x80, 0xA0]), cpu, 1)
        moments.append((bench.gic.snapshot(), bench.outputs(), [bench.read_icc(HPPIR1, n) for n in (0, 1)]))
    rng.shuffle(moments)
    for snapshot, outputs, pending in moments:
        bench.gic.restore(snapshot)
        assert bench.gic.snapshot() == snapshot
        assert (bench.outputs(), [bench.read_icc(HPPIR1, n) for n in (0, 1)]) == (outputs, pending)

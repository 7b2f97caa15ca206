"""The interrupt controller against the architecture's rules, and with several CPUs against a slow, obvious model.

test_gic_qemu.py holds it, with one CPU, to QEMU's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.machine.devices.gic import SPURIOUS, Gic2

# Distributor.
CTLR, TYPER, IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR = 0, 4, 0x80, 0x100, 0x180, 0x200, 0x280
ISACTIVER, ICACTIVER, IPRIORITYR, ITARGETSR, ICFGR = 0x300, 0x380, 0x400, 0x800, 0xC00
SGIR, CPENDSGIR, SPENDSGIR = 0xF00, 0xF10, 0xF20
# CPU interface.
PMR, BPR, IAR, EOIR, RPR, HPPIR, ABPR, AIAR, AEOIR, AHPPIR, DIR = (
    *range(0x04, 0x2C, 4),
    0x1000,
)
EOIMODE = 1 << 9
FIQEN = 1 << 3


class Bench:
    """A controller whose interrupts are all enabled at priority 0xa0, and a driver's few words for it."""

    def __init__(self, cpus: int = 1) -> None:
        self.heard: list[tuple[int, bool]] = []
        self.gic = Gic2(cpus, lambda cpu, level: self.heard.append((cpu, level)))
        self.dist(CTLR, 1)
        for cpu in range(cpus):
            self.cpu(0, 1, cpu)
            self.cpu(PMR, 0xF0, cpu)
            self.dist(ISENABLER, 0xFFFFFFFF, cpu=cpu)
            for offset in range(IPRIORITYR, IPRIORITYR + 288, 4):
                self.dist(offset, 0xA0A0A0A0, cpu=cpu)
        for word in range(1, 9):
            self.dist(ISENABLER + 4 * word, 0xFFFFFFFF)
        for offset in range(ITARGETSR + 32, ITARGETSR + 288, 4):
            self.dist(offset, 0x01010101)

    def dist(self, offset: int, value: int, size: int = 4, cpu: int = 0) -> None:
        self.gic.distributor(cpu).write(offset, size, value)

    def read_dist(self, offset: int, size: int = 4, cpu: int = 0) -> int:
        return self.gic.distributor(cpu).read(offset, size)

    def cpu(self, offset: int, value: int, cpu: int = 0) -> None:
        self.gic.cpu_interface(cpu).write(offset, 4, value)

    def read_cpu(self, offset: int, cpu: int = 0) -> int:
        return self.gic.cpu_interface(cpu).read(offset, 4)

    def acknowledge(self, cpu: int = 0) -> int:
        return self.read_cpu(IAR, cpu)

    def end(self, intid: int, cpu: int = 0) -> None:
        self.cpu(EOIR, intid, cpu)

    def priority(self, intid: int, value: int, cpu: int = 0) -> None:
        self.dist(IPRIORITYR + intid, value, 1, cpu)

    def edge(self, intid: int) -> None:
        register = ICFGR + intid // 16 * 4
        self.dist(register, self.read_dist(register) | 2 << intid % 16 * 2)


# -- lines -----------------------------------------------------------------------------------------------------


def test_a_level_interrupts_until_the_device_lets_go_of_its_line():
    bench = Bench()
    line = bench.gic.line(33)
    line(True)
    assert bench.heard == [(0, True)]
    assert bench.acknowledge() == 33
    assert bench.heard == [(0, True), (0, False)], "active: not signalled again"
    bench.end(33)
    assert bench.gic.interfaces[0].output, "the line is still high"
    assert bench.acknowledge() == 33
    line(False)
    bench.end(33)
    assert not bench.gic.interfaces[0].output
    assert bench.acknowledge() == SPURIOUS


def test_a_level_that_goes_before_it_is_acknowledged_leaves_nothing_behind():
    bench = Bench()
    bench.gic.set_level(33, True)
    bench.gic.set_level(33, False)
    assert bench.heard == [(0, True), (0, False)]
    assert bench.acknowledge() == SPURIOUS


def test_an_edge_is_kept_and_counts_once():
    bench = Bench()
    bench.edge(40)
    bench.gic.set_level(40, True)
    bench.gic.set_level(40, False)
    assert bench.acknowledge() == 40
    bench.gic.set_level(40, True)
    bench.gic.set_level(40, True)
    assert bench.read_dist(ISPENDR + 4) == 1 << 8, "active and pending"
    bench.end(40)
    assert bench.acknowledge() == 40
    bench.end(40)
    assert bench.acknowledge() == SPURIOUS, "the line is high, but that is no edge"
    bench.gic.set_level(40, False)
    assert bench.acknowledge() == SPURIOUS, "nor is its fall"


def test_an_interrupt_made_pending_by_software_is_taken_once_even_of_a_level_line():
    bench = Bench()
    bench.dist(ISPENDR + 4, 1 << 1)
    assert bench.acknowledge() == 33
    bench.end(33)
    assert bench.acknowledge() == SPURIOUS
    bench.dist(ISPENDR + 4, 1 << 1)
    bench.dist(ICPENDR + 4, 1 << 1)
    assert bench.acknowledge() == SPURIOUS
    bench.gic.set_level(33, True)
    bench.dist(ICPENDR + 4, 1 << 1)
    assert bench.acknowledge() == 33, "what the line says is not for software to clear"


def test_private_interrupts_are_each_cpu_s_own():
    bench = Bench(2)
    bench.gic.line(27, 1)(True)
    assert bench.heard == [(1, True)]
    assert [bench.read_dist(ISPENDR, cpu=cpu) for cpu in (0, 1)] == [0, 1 << 27]
    bench.dist(ICENABLER, 1 << 27, cpu=0)
    assert bench.gic.interfaces[1].output, "CPU 0 masked its own"
    assert [bench.acknowledge(cpu) for cpu in (0, 1)] == [SPURIOUS, 27]


@pytest.mark.parametrize(("intid", "cpu"), [(0, 0), (15, 0), (-1, 0), (288, 0), (1023, 0)])
def test_there_are_no_lines_but_those_of_devices(intid, cpu):
    gic = Gic2(1, lambda cpu, level: None)
    with pytest.raises(ValueError, match="no line"):
        gic.line(intid, cpu)
    with pytest.raises(ValueError):
        gic.set_level(intid, True, cpu)


@pytest.mark.parametrize(
    "numbers", [{"cpus": 0}, {"cpus": 9}, {"cpus": 1, "spis": 33}, {"cpus": 1, "spis": 992}]
)
def test_a_controller_that_the_architecture_does_not_know_is_refused(numbers):
    with pytest.raises(ValueError):
        Gic2(on_output=lambda cpu, level: None, **numbers)


@pytest.mark.parametrize(("cpus", "spis"), [(1, 32), (2, 256), (8, 960)])
def test_typer_tells_how_many_interrupts_and_cpus_there_are(cpus, spis):
    gic = Gic2(cpus, lambda cpu, level: None, spis=spis)
    typer = gic.distributor(0).read(TYPER, 4)
    assert 32 * ((typer & 0x1F) + 1) == 32 + spis
    assert (typer >> 5 & 7) + 1 == cpus


def test_a_cpu_that_is_made_deaf_hears_nothing_any_more():
    bench = Bench(2)
    for cpu in range(2):
        bench.gic.line(27, cpu)(True)
    bench.gic.disable_cpu_interface(1)
    assert [bench.gic.interfaces[cpu].output for cpu in (0, 1)] == [True, False]


# -- targets ---------------------------------------------------------------------------------------------------


def test_a_shared_interrupt_goes_to_its_targets_and_the_first_to_acknowledge_gets_it():
    bench = Bench(4)
    bench.dist(ITARGETSR + 50, 0b0110, 1)
    bench.gic.set_level(50, True)
    assert bench.heard == [(1, True), (2, True)]
    assert bench.acknowledge(0) == SPURIOUS
    assert bench.acknowledge(2) == 50
    assert bench.heard[2:] == [(1, False), (2, False)]
    assert bench.acknowledge(1) == SPURIOUS
    bench.end(50, 2)
    assert sorted(bench.heard[4:]) == [(1, True), (2, True)], "its line is high still"


def test_a_new_target_hears_of_what_is_pending_and_the_old_one_no_more():
    bench = Bench(2)
    bench.gic.set_level(32, True)
    bench.dist(ITARGETSR + 32, 2, 1)
    assert [bench.gic.interfaces[cpu].output for cpu in (0, 1)] == [False, True]


def test_a_cpu_that_ends_what_it_no_longer_is_a_target_of_goes_on_with_its_own():
    bench = Bench(2)
    for intid in (33, 40):
        bench.gic.set_level(intid, True)
    assert bench.acknowledge(0) == 33
    bench.dist(ITARGETSR + 33, 2, 1)
    bench.end(33, 0)
    assert [bench.acknowledge(cpu) for cpu in (0, 1)] == [40, 33]


def test_the_targets_of_private_interrupts_are_the_reader_and_cannot_be_written():
    bench = Bench(3)
    for cpu in range(3):
        bench.dist(ITARGETSR + 4, 0x07070707, cpu=cpu)
        assert bench.read_dist(ITARGETSR + 4, cpu=cpu) == 0x01010101 << cpu
    bench.dist(ITARGETSR + 32, 0xFF, 1)
    assert bench.read_dist(ITARGETSR + 32, 1) == 0b111, "CPUs that are not there are no targets"


def test_one_cpu_alone_is_the_target_of_everything_and_reads_zero():
    bench = Bench(1)
    bench.dist(ITARGETSR + 32, 0, 4)
    assert bench.read_dist(ITARGETSR + 32) == bench.read_dist(ITARGETSR) == 0
    bench.gic.set_level(32, True)
    assert bench.gic.interfaces[0].output


# -- priorities ------------------------------------------------------------------------------------------------


def test_the_lowest_priority_value_goes_first_and_of_equals_the_lowest_number():
    bench = Bench()
    bench.priority(60, 0x20)
    for intid in (29, 60, 40, 35):
        bench.gic.set_level(intid, True)
    order = []
    while (intid := bench.acknowledge()) != SPURIOUS:
        order.append(intid)
        bench.gic.set_level(intid, False)
        bench.end(intid)
    assert order == [60, 29, 35, 40]


def test_the_mask_lets_through_only_what_is_strictly_more_urgent():
    bench = Bench()
    bench.gic.set_level(33, True)
    bench.cpu(PMR, 0xA0)
    assert not bench.gic.interfaces[0].output
    assert bench.acknowledge() == SPURIOUS
    assert bench.read_cpu(HPPIR) == 33, "the mask hides nothing from the eye"
    bench.cpu(PMR, 0xA1)
    assert bench.gic.interfaces[0].output


def test_a_more_urgent_interrupt_preempts_and_each_end_gives_back_the_priority_before():
    bench = Bench()
    bench.priority(40, 0x40)
    bench.priority(50, 0x41)
    running = []
    for intid in (33, 40):
        bench.gic.set_level(intid, True)
        assert bench.acknowledge() == intid
        running.append(bench.read_cpu(RPR))
    bench.gic.set_level(50, True)
    assert not bench.gic.interfaces[0].output, "0x41 and 0x40 are of one group priority"
    for intid in (40, 33):
        bench.gic.set_level(intid, False)
        bench.end(intid)
        running.append(bench.read_cpu(RPR))
        if intid == 40:
            assert bench.gic.interfaces[0].output, "0x41 goes before 0xa0"
    assert running == [0xA0, 0x40, 0xA0, 0xFF]


@pytest.mark.parametrize("point", range(8))
def test_the_binary_point_says_how_many_bits_preempt(point):
    bench = Bench()
    bench.cpu(BPR, point)
    bench.priority(33, 0x80)
    bench.gic.set_level(33, True)
    assert bench.acknowledge() == 33
    for bit in range(7):
        bench.priority(40, 0x80 - (1 << bit))
        bench.gic.set_level(40, True)
        # 0x80 - 2^bit differs from 0x80 in bit 7, which preempts unless the point is behind it.
        assert bench.gic.interfaces[0].output == (point < 7)
        bench.gic.set_level(40, False)
    bench.priority(33, 0xFE)
    bench.gic.set_level(33, False)
    bench.end(33)
    bench.cpu(PMR, 0xFF)
    bench.gic.set_level(33, True)
    assert bench.acknowledge() == 33
    for bit in range(1, 8):
        bench.priority(40, 0xFE - (1 << bit))
        bench.gic.set_level(40, True)
        # Now exactly one bit differs: it counts when it lies above the point.
        assert bench.gic.interfaces[0].output == (bit > point)
        bench.gic.set_level(40, False)


def test_the_end_of_nothing_changes_nothing():
    bench = Bench()
    before = bench.gic.snapshot()
    for intid in (0, 33, 287, 288, 1022, 1023):
        bench.end(intid)
    assert bench.gic.snapshot() == before


def test_with_eoimode_the_end_drops_the_priority_and_dir_deactivates():
    bench = Bench()
    bench.cpu(0, 1 | EOIMODE)
    bench.gic.set_level(33, True)
    assert bench.acknowledge() == 33
    bench.end(33)
    assert bench.read_cpu(RPR) == 0xFF
    assert bench.read_dist(ISACTIVER + 4) == 2
    assert not bench.gic.interfaces[0].output
    bench.cpu(DIR, 33)
    assert bench.read_dist(ISACTIVER + 4) == 0
    assert bench.gic.interfaces[0].output


def test_a_second_kernel_starts_from_a_clean_controller_after_a_crash_in_a_handler():
    """What Linux's distributor and CPU set-up do: deactivate everything, and clear the active priorities."""
    bench = Bench()
    bench.gic.set_level(33, True)
    assert bench.acknowledge() == 33
    for word in range(9):
        bench.dist(ICACTIVER + 4 * word, 0xFFFFFFFF)
    assert bench.read_cpu(RPR) == 0xA0
    assert not bench.gic.interfaces[0].output, "the running priority is still that of the handler"
    # Linux clears the active priorities only of what says that it is a GICv2 of Arm's.
    assert bench.read_cpu(0xFC) & 0xFF0FFF == 0x0002043B
    for offset in range(0xD0, 0xE0, 4):
        bench.cpu(offset, 0)
    assert bench.read_cpu(RPR) == 0xFF
    assert bench.gic.interfaces[0].output


# -- software generated interrupts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "targets"), [(0x00050003, [0, 2]), (0x01000003, [0, 2, 3]), (0x02000003, [1]), (0x03FF0003, [])]
)
def test_an_sgi_goes_to_a_list_to_all_others_or_to_oneself(word, targets):
    bench = Bench(4)
    bench.dist(SGIR, word, cpu=1)
    assert [cpu for cpu in range(4) if bench.gic.interfaces[cpu].output] == targets
    for cpu in targets:
        assert bench.acknowledge(cpu) == 1 << 10 | 3, "with the number of the sender"


def test_the_same_sgi_from_two_cpus_is_taken_twice():
    bench = Bench(3)
    for sender in (2, 1):
        bench.dist(SGIR, 0x00010005, cpu=sender)
    assert bench.read_dist(CPENDSGIR + 4) == 0b110 << 8
    assert bench.read_dist(ISPENDR) == 1 << 5
    taken = []
    while (value := bench.acknowledge()) != SPURIOUS:
        taken.append(value)
        bench.end(value)
    assert taken == [1 << 10 | 5, 2 << 10 | 5]


def test_pending_sgis_are_set_and_cleared_for_each_source():
    bench = Bench(2)
    bench.dist(SPENDSGIR + 7, 0b11, 1)
    bench.dist(CPENDSGIR + 7, 0b01, 1)
    assert bench.read_dist(SPENDSGIR + 4) == 0b10 << 24
    assert bench.read_cpu(HPPIR) == 1 << 10 | 7
    bench.dist(CPENDSGIR + 4, 0xFFFFFFFF)
    assert not bench.gic.interfaces[0].output
    bench.dist(SPENDSGIR + 7, 0b100, 1)
    assert not bench.gic.interfaces[0].output, "there is no CPU 2"


def test_sgis_cannot_be_disabled_or_made_pending_like_others():
    bench = Bench()
    bench.dist(ICENABLER, 0xFFFF)
    assert bench.read_dist(ISENABLER) & 0xFFFF == 0xFFFF
    bench.dist(ISPENDR, 0xFFFF)
    assert bench.read_dist(ISPENDR) == 0
    bench.dist(SGIR, 0x02000000)
    bench.dist(ICPENDR, 0xFFFF)
    assert bench.read_dist(ISPENDR) == 1


# -- groups ----------------------------------------------------------------------------------------------------


def test_group_1_needs_ackctl_or_the_alias_to_be_acknowledged():
    bench = Bench()
    bench.dist(IGROUPR + 4, 1 << 1)
    bench.dist(CTLR, 3)
    bench.cpu(0, 3)
    bench.gic.set_level(33, True)
    assert bench.gic.interfaces[0].output
    assert bench.acknowledge() == 1022
    assert (bench.read_cpu(HPPIR), bench.read_cpu(AHPPIR)) == (1022, 33)
    assert bench.read_cpu(AIAR) == 33
    bench.cpu(AEOIR, 33)
    bench.cpu(0, 7)
    assert bench.acknowledge() == 33


@pytest.mark.parametrize(("common", "preempts"), [(0, False), (1 << 4, True)])
def test_group_1_has_a_binary_point_of_its_own_unless_it_is_common(common, preempts):
    """ABPR of 4 splits group 1 as BPR of 3 would: 0xb0 and 0xb8 are alike then."""
    bench = Bench()
    bench.dist(CTLR, 3)
    bench.dist(IGROUPR + 4, 0xFFFFFFFF)
    bench.cpu(0, 7 | common)
    bench.cpu(ABPR, 4)
    bench.priority(33, 0xB8)
    bench.priority(34, 0xB0)
    bench.gic.set_level(33, True)
    assert bench.acknowledge() == 33
    assert bench.read_cpu(RPR) == (0xB8 if preempts else 0xB0)
    bench.gic.set_level(34, True)
    assert bench.gic.interfaces[0].output == preempts
    bench.priority(34, 0xA8)
    assert bench.gic.interfaces[0].output


def test_the_alias_does_not_see_group_0():
    bench = Bench()
    bench.gic.set_level(33, True)
    assert (bench.read_cpu(AIAR), bench.read_cpu(AHPPIR)) == (SPURIOUS, SPURIOUS)
    assert bench.acknowledge() == 33


def test_a_group_that_the_distributor_does_not_forward_stands_in_nobody_s_way():
    bench = Bench()
    bench.dist(IGROUPR + 4, 1 << 1)
    bench.priority(33, 0)
    bench.gic.set_level(33, True)
    bench.gic.set_level(34, True)
    assert bench.acknowledge() == 34


def test_with_fiqen_group_0_does_not_raise_the_irq_signal():
    bench = Bench()
    bench.cpu(0, 1 | FIQEN)
    bench.gic.set_level(33, True)
    assert not bench.gic.interfaces[0].output
    assert bench.acknowledge() == 33


# -- all at once -----------------------------------------------------------------------------------------------


def test_disabling_the_distributor_or_the_interface_lowers_the_signal():
    bench = Bench()
    bench.gic.set_level(33, True)
    bench.dist(CTLR, 0)
    bench.dist(CTLR, 1)
    bench.cpu(0, 0)
    bench.cpu(0, 1)
    assert bench.heard == [(0, True), (0, False)] * 2 + [(0, True)]


def test_narrow_accesses_see_the_bytes_of_the_word():
    bench = Bench()
    bench.gic.set_level(33, True)
    bench.gic.set_level(63, True)
    for register in (TYPER, ISENABLER, ISPENDR + 4, IPRIORITYR + 32, ICFGR, 0xFE0):
        word = bench.read_dist(register)
        assert [bench.read_dist(register + n, 1) for n in range(4)] == list(word.to_bytes(4, "little"))
    bench.dist(ICENABLER + 7, 0x80, 1)
    assert bench.read_dist(ISENABLER + 4) == 0x7FFFFFFF


# -- a slow model, and random accesses -------------------------------------------------------------------------

CPUS = 3
LINES = (16, 27, 31, 32, 45, 63)
ALL = (0, 1, 15, *LINES)
PRIORITIES = (0x00, 0x40, 0x42, 0x50, 0xA0, 0xF0)


@dataclass
class Interrupt:
    """One interrupt: of the one CPU that has it, or of all."""

    intid: int
    level: bool = False
    latch: bool = False
    edge: bool = False
    enabled: bool = False
    active: bool = False
    priority: int = 0
    targets: set[int] = field(default_factory=set)
    sources: set[int] = field(default_factory=set)

    @property
    def pending(self) -> bool:
        if self.intid < 16:
            return bool(self.sources)
        return self.latch or (self.level and not self.edge)


class Model:
    """The rules, one after the other, for one group and a binary point of 0; nothing is kept that can be worked out."""

    def __init__(self) -> None:
        self.on = True
        self.mask = [0xF0] * CPUS
        self.running: list[list[int]] = [[] for _ in range(CPUS)]
        self.state: dict[tuple[int | None, int], Interrupt] = {}
        for intid in ALL:
            for cpu in range(CPUS) if intid < 32 else [None]:
                targets = {cpu} if cpu is not None else set()
                self.state[cpu, intid] = Interrupt(
                    intid, edge=intid < 16, enabled=intid < 16, targets=targets
                )

    def of(self, cpu: int, intid: int) -> Interrupt:
        return self.state[cpu if intid < 32 else None, intid]

    def best(self, cpu: int) -> Interrupt | None:
        waiting = [
            each
            for each in (self.of(cpu, intid) for intid in ALL)
            if self.on and each.pending and each.enabled and not each.active and cpu in each.targets
        ]
        return min(waiting, key=lambda each: (each.priority, each.intid), default=None)

    def signalled(self, cpu: int) -> Interrupt | None:
        best = self.best(cpu)
        if best is None or best.priority >= self.mask[cpu]:
            return None
        running = min(self.running[cpu], default=0x100)
        return best if best.priority & 0xFE < running else None

    def acknowledge(self, cpu: int) -> int:
        taken = self.signalled(cpu)
        if taken is None:
            return SPURIOUS
        taken.active = True
        taken.latch = False
        self.running[cpu].append(taken.priority & 0xFE)
        source = min(taken.sources, default=0)
        taken.sources.discard(source)
        return source << 10 | taken.intid

    def end(self, cpu: int, intid: int) -> None:
        if self.running[cpu]:
            self.running[cpu].remove(min(self.running[cpu]))
            self.of(cpu, intid).active = False

    def drive(self, cpu: int, intid: int, level: bool) -> None:
        each = self.of(cpu, intid)
        each.latch |= level and not each.level and each.edge
        each.level = level


cpus = st.integers(0, CPUS - 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("drive"), cpus, st.sampled_from(LINES), st.booleans()),
        st.tuples(st.just("acknowledge"), cpus),
        st.tuples(st.just("end"), cpus, st.booleans(), st.sampled_from(ALL)),
        st.tuples(st.just("sgi"), cpus, st.sampled_from([0, 1, 15]), st.integers(0, 7)),
        st.tuples(st.just("enable"), cpus, st.sampled_from(LINES), st.booleans()),
        st.tuples(st.just("pend"), cpus, st.sampled_from(LINES), st.booleans()),
        st.tuples(st.just("activate"), cpus, st.sampled_from(ALL), st.booleans()),
        st.tuples(st.just("priority"), cpus, st.sampled_from(ALL), st.sampled_from(PRIORITIES)),
        st.tuples(st.just("target"), st.sampled_from([32, 45, 63]), st.integers(0, 7)),
        st.tuples(st.just("mask"), cpus, st.sampled_from([0, 0x41, 0x50, 0xF0, 0xFF])),
        st.tuples(st.just("edge"), cpus, st.sampled_from(LINES), st.booleans()),
        st.tuples(st.just("on"), st.booleans()),
        st.tuples(
            st.just("again"),
        ),
    ),
    min_size=20,
    max_size=120,
)


class Both:
    """The controller and the model, given the same."""

    def __init__(self) -> None:
        self.signals = [False] * CPUS
        self.gic = Gic2(CPUS, self.hear)
        self.model = Model()
        self.taken: list[list[int]] = [[] for _ in range(CPUS)]
        self.gic.distributor(0).write(CTLR, 4, 1)
        for cpu in range(CPUS):
            self.gic.cpu_interface(cpu).write(0, 4, 1)
            self.gic.cpu_interface(cpu).write(PMR, 4, 0xF0)
        for cpu in range(CPUS):
            for intid in LINES:
                self.enable(cpu, intid, True)
        for intid in (32, 45, 63):
            self.target(intid, 7)

    def hear(self, cpu: int, level: bool) -> None:
        assert self.signals[cpu] != level, "called though nothing changed"
        self.signals[cpu] = level

    def bit(self, cpu: int, register: int, intid: int) -> None:
        self.gic.distributor(cpu).write(register + intid // 32 * 4, 4, 1 << intid % 32)

    def drive(self, cpu: int, intid: int, level: bool) -> None:
        self.gic.set_level(intid, level, cpu)
        self.model.drive(cpu, intid, level)

    def acknowledge(self, cpu: int) -> None:
        value = self.gic.cpu_interface(cpu).read(IAR, 4)
        assert value == self.model.acknowledge(cpu)
        if value != SPURIOUS:
            self.taken[cpu].append(value)

    def end(self, cpu: int, proper: bool, intid: int) -> None:
        if proper and self.taken[cpu]:
            intid = self.taken[cpu].pop()
        self.gic.cpu_interface(cpu).write(EOIR, 4, intid)
        self.model.end(cpu, intid & 0x3FF)

    def sgi(self, cpu: int, intid: int, targets: int) -> None:
        self.gic.distributor(cpu).write(SGIR, 4, targets << 16 | intid)
        for target in range(CPUS):
            if targets >> target & 1:
                self.model.of(target, intid).sources.add(cpu)

    def enable(self, cpu: int, intid: int, on: bool) -> None:
        self.bit(cpu, ISENABLER if on else ICENABLER, intid)
        self.model.of(cpu, intid).enabled = on

    def pend(self, cpu: int, intid: int, on: bool) -> None:
        self.bit(cpu, ISPENDR if on else ICPENDR, intid)
        self.model.of(cpu, intid).latch = on

    def activate(self, cpu: int, intid: int, on: bool) -> None:
        self.bit(cpu, ISACTIVER if on else ICACTIVER, intid)
        self.model.of(cpu, intid).active = on

    def priority(self, cpu: int, intid: int, value: int) -> None:
        self.gic.distributor(cpu).write(IPRIORITYR + intid, 1, value)
        self.model.of(cpu, intid).priority = value

    def target(self, intid: int, targets: int) -> None:
        self.gic.distributor(0).write(ITARGETSR + intid, 1, targets)
        self.model.of(0, intid).targets = {cpu for cpu in range(CPUS) if targets >> cpu & 1}

    def mask(self, cpu: int, value: int) -> None:
        self.gic.cpu_interface(cpu).write(PMR, 4, value)
        self.model.mask[cpu] = value

    def edge(self, cpu: int, intid: int, on: bool) -> None:
        view, register = self.gic.distributor(cpu), ICFGR + intid // 16 * 4
        field_ = 2 << intid % 16 * 2
        view.write(register, 4, view.read(register, 4) & ~field_ | (field_ if on else 0))
        self.model.of(cpu, intid).edge = on

    def on(self, on: bool) -> None:
        self.gic.distributor(0).write(CTLR, 4, int(on))
        self.model.on = on

    def again(self) -> None:
        """Into a new controller and on from there: all state is in a snapshot."""
        old = self.gic
        self.gic = Gic2(CPUS, lambda cpu, level: None)
        self.gic.restore(old.snapshot())
        self.gic.on_output = self.hear
        assert self.gic.snapshot() == old.snapshot()

    def check(self) -> None:
        for cpu in range(CPUS):
            expected = self.model.signalled(cpu) is not None
            assert (self.gic.interfaces[cpu].output, self.signals[cpu]) == (expected, expected), cpu
            best = self.model.best(cpu)
            pending = SPURIOUS if best is None else min(best.sources, default=0) << 10 | best.intid
            assert self.gic.cpu_interface(cpu).read(HPPIR, 4) == pending
            running = min(self.model.running[cpu], default=0xFF)
            assert self.gic.cpu_interface(cpu).read(RPR, 4) == running
            for intid in ALL:
                each, word = self.model.of(cpu, intid), intid // 32 * 4
                for register, state in (
                    (ISPENDR, each.pending),
                    (ISACTIVER, each.active),
                    (ISENABLER, each.enabled),
                ):
                    bits = self.gic.distributor(cpu).read(register + word, 4)
                    assert bits >> intid % 32 & 1 == state, (cpu, intid, hex(register))


@settings(max_examples=150, deadline=None)
@given(steps)
def test_random_accesses_of_three_cpus_do_what_a_slow_model_says(script):
    both = Both()
    both.check()
    for name, *arguments in script:
        getattr(both, name)(*arguments)
        both.check()

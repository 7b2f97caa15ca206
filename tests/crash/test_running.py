"""How a stage is run: in which pieces, with which budgets, and what it is told of on the way, by a CPU that is none."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.crash import running
from kexecemu.crash.running import _passes, _run, capture_stage, purgatory_stage, run_purgatory
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd, hashing_takes
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.linux.capture import LinuxCapture, LinuxEnd
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.first import through

BASE, KERNEL = 0x40000000, 0x40010000
WITHIN = range(BASE, BASE + 0x1000)
ABORT = GuestException(0, 5, "sync", 0x96000047, 0xFFFF000000000000, BASE, 1, 0x3C5, delivered=False)


class Cpu:
    """Runs as long as it may, up to an end that is written down; the host works so much for each of its runs."""

    def __init__(
        self, end: int = 10**9, kind: CpuStopKind = CpuStopKind.LEFT, work: int = 0, spins: int = 10**9
    ) -> None:
        self.done, self.end, self.kind, self.each, self.spins_at = 0, end, kind, work, spins
        self.work, self.log = 1000, list[str]()

    def run(self, *, within: range, limit: int, budget: int, deliver: bool) -> CpuStop:
        assert within == WITHIN and limit > 0
        self.log.append(f"{limit}/{budget}{'' if deliver else ' not delivered'}")
        count = min(limit, self.end - self.done)
        self.done += count
        self.work += self.each
        return CpuStop(self.kind if self.done == self.end else CpuStopKind.DEADLINE, BASE, count)

    def spins(self) -> bool:
        return self.done >= self.spins_at


def ran(
    cpu: Cpu, budget: int, used: int = 0, targets: Any = (), **more: Any
) -> tuple[list[Any], CpuStop, int]:
    """What a run stopped at, with the instructions by then, and how it ended."""
    at: list[Any] = []
    steps = _run(cpu, WITHIN, budget, used, targets, **more)  # type: ignore[arg-type]
    while True:
        try:
            at.append((next(steps), cpu.done))
        except StopIteration as end:
            return at, *end.value


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_SLICE", 100)


@pytest.mark.parametrize(
    ("cpu", "more", "log", "at", "used"),
    [
        (Cpu(250), {}, "100/1000 100/900 100/800", [], 250),
        (Cpu(250), {"used": 30}, "100/970 100/870 100/770", [], 280),
        (Cpu(), {"budget": 250}, "100/250 100/150 50/50", [], 250),
        (Cpu(100), {}, "100/1000", [], 100),
        # Once what it is looked at for is behind it, by slices again.
        (Cpu(250), {"look": 60}, "60/1000 100/940 100/840", [], 250),
        (Cpu(350), {"look": 160}, "100/1000 60/900 100/840 100/740", [], 350),
        (Cpu(spins=60), {"look": 60}, "60/1000", [], 60),
        (Cpu(spins=60), {}, "100/1000", [], 100),
        # The host's work counts as well, and ends it by itself.
        (Cpu(work=400), {}, "100/1000 100/500", [], 200),
        (Cpu(work=2000), {"targets": [(1, 120), (2, 130)]}, "120/1000 10/0 100/0", [(1, 120), (2, 130)], 230),
        (Cpu(250, CpuStopKind.FAULT), {"deliver": False}, "100/1000 not delivered 100/900 not delivered 100/800 not "
         "delivered", [], 250),
        # Moments, of which two are one and the first is now.
        (Cpu(400), {"targets": [(0, 0), (1, 120), (2, 120), (3, 250)]}, "120/1000 130/880 100/750 100/650",
         [(0, 0), (1, 120), (2, 120), (3, 250)], 400),
        (Cpu(400), {"targets": [(5, 100), (6, 200)], "used": 100}, "100/900 100/800 100/700 100/600",
         [(5, 0), (6, 100)], 500),
        (Cpu(240), {"targets": [(1, 120), (3, 250)]}, "120/1000 130/880", [(1, 120)], 240),
        (Cpu(250), {"targets": [(3, 250), (4, 260)]}, "250/1000", [], 250),
    ],
)  # fmt: skip
def test_it_runs_to_each_moment_and_then_by_slices_until_something_ends_it(
    cpu: Cpu, more: dict[str, Any], log: str, at: list[Any], used: int
) -> None:
    found, stop, count = ran(cpu, **({"budget": 1000} | more))
    assert (" ".join(cpu.log), found, count) == (log, at, used)
    assert stop.kind is (cpu.kind if cpu.done == cpu.end else CpuStopKind.DEADLINE)


def test_whoever_waits_hears_after_each_slice_but_the_last() -> None:
    told: list[int] = []
    ran(Cpu(250), 1000, tell=told.append)
    ran(Cpu(), 250, tell=told.append)
    ran(Cpu(spins=200), 1000, tell=told.append)
    assert told == [100, 200, 100, 200, 100]


# -- a purgatory -------------------------------------------------------------------------------------------------


def image(*names: str, symbols: tuple[str, ...] = (), **more: Any) -> Kimage:
    """An image of 0x3000 bytes that are hashed, with more segments of these names."""
    buf = bytearray(b"purgatory")
    segments = [Segment("purgatory", buf, BASE, 0x1000), Segment("kernel", bytes(0x100), KERNEL, 0x1000)]
    segments += [Segment(name, b"", 0, 0) for name in names]
    checker: Any = SimpleNamespace(
        segment=segments[0], buf=buf, has_symbol=symbols.__contains__, symbol_size=lambda _: 0,
        symbol_table=dict, entry=BASE,
    )  # fmt: skip
    regions = [PhysRange.of(0x1000, 0x1000), PhysRange.of(0x8000, 0x2000)]
    return Kimage(0, segments, kernel_entry=KERNEL, sha_regions=regions, purgatory=checker, **more)


@pytest.mark.parametrize(
    ("names", "symbols", "passes"),
    [
        ((), (), 1),
        ((), ("purgatory_region_digests",), 2),
        (("page-digests",), (), 2),
        (("page-digests",), ("purgatory_region_digests",), 3),
        (("copy",), (), 4),
        (("copy", "page-digests"), ("purgatory_region_digests",), 6),
    ],
)
def test_a_purgatory_goes_over_the_regions_as_often_as_it_has_ways_to(
    names: tuple[str, ...], symbols: tuple[str, ...], passes: int
) -> None:
    own = image(*names, symbols=symbols)
    assert own.purgatory is not None
    assert _passes(own, own.purgatory) == passes


class Stage:
    """Stands for _run(): keeps what it was called with, and ends as it is told."""

    def __init__(self, *stops: tuple[CpuStop, int]) -> None:
        self.stops, self.calls = list(stops), list[Any]()
        self.tell: Any = None

    def __call__(
        self, cpu: Any, within: range, budget: int, used: int, targets: Any, tell: Any = None, **more: Any
    ) -> Generator[int, None, tuple[CpuStop, int]]:
        targets = list(targets)
        self.calls.append((within, budget, used, targets, more))
        self.tell = tell
        for step, _ in targets:
            yield step
        return self.stops.pop(0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CPU with memory, whose system registers are 0; whether code was checked as intact is kept."""
    ram = Ram([PhysRange.of(BASE, 0x20000)])
    ram.write(BASE, b"purgatory")
    found: Any = SimpleNamespace(
        ram=ram, exceptions=[ABORT], entered=[], intact=[], vbar=0, pc=KERNEL, x=lambda number: 0x1230 + number,
        sysreg=lambda name: found.vbar if name == "VBAR_EL1" else 0, spins=lambda: False,
    )  # fmt: skip
    found.enter_exception = lambda *words: found.entered.append(words)

    @contextmanager
    def checked(cpu: Any, *, intact: bool) -> Iterator[None]:
        assert cpu is found
        found.intact.append(intact)
        yield

    monkeypatch.setattr(running, "checked", checked)
    return found


LEFT = CpuStop(CpuStopKind.LEFT, KERNEL, 5)
SIZE = 0x3000


@pytest.mark.parametrize(
    ("least", "names", "budget"),
    [
        (0, (), 20_000_000 + 100 * SIZE),
        (20_000_001, (), 20_000_001 + 100 * SIZE),
        (19_999_999, ("copy",), 20_000_000 + 4 * 100 * SIZE),
    ],
)
def test_a_purgatory_has_a_budget_by_what_it_hashes_and_how_often(
    least: int, names: tuple[str, ...], budget: int, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage((LEFT, 777))
    monkeypatch.setattr(running, "_run", stage)
    run = through(
        purgatory_stage(
            machine, image(*names), back_phys=0, steps=(0, 1, 255), total=1000, done=7, least=least
        )
    )
    more = {"look": hashing_takes(SIZE) - 2, "deliver": False}
    assert stage.calls == [(WITHIN, budget, 7, [(0, 0), (1, 3), (255, 996)], more)]
    assert stage.tell is None and machine.intact == [True]
    assert (run.end, run.pc, run.instructions, run.fault, run.power) == (
        PurgatoryEnd.KERNEL,
        KERNEL,
        777,
        None,
        None,
    )


def test_one_that_is_not_as_loaded_is_checked_as_such_and_progress_is_a_guess_that_grows(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, told = Stage((replace(LEFT, power="system_off"), 1), (LEFT, 1)), list[Any]()
    monkeypatch.setattr(running, "_run", stage)
    machine.ram.write(BASE + 3, b"?")
    first: Any = SimpleNamespace(board=SimpleNamespace(boot_cpu=machine), purgatory_budget=99)
    run = run_purgatory(first, image(), lambda done, expected: told.append((done, expected)))
    assert machine.intact == [False] and run.power == "system_off"
    stage.tell(5)
    stage.tell(35 * SIZE + 1)
    assert told == [(5, 35 * SIZE), (35 * SIZE + 1, 35 * SIZE + 1)]
    assert stage.calls[0][1] == 20_000_000 + 100 * SIZE


@pytest.mark.parametrize(
    ("vbar", "delivered"), [(BASE, True), (BASE + 0xFFF, True), (BASE + 0x1000, False), (0, False)]
)
def test_an_exception_is_delivered_to_vectors_of_its_own_with_another_budget(
    vbar: int, delivered: bool, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.vbar = vbar
    stage = Stage((CpuStop(CpuStopKind.FAULT, 0x200, 5, ABORT), 50), (LEFT, 60))
    monkeypatch.setattr(running, "_run", stage)
    run = through(purgatory_stage(machine, image(), back_phys=0))
    budget = 20_000_000 + 100 * SIZE
    if delivered:
        assert stage.calls[1] == (WITHIN, 50 + budget, 50, [], {})
        there = replace(ABORT, delivered=True)
        assert machine.exceptions == [there] and machine.entered == [("sync", ABORT.esr, ABORT.far)]
        assert (run.end, run.fault, run.instructions) == (PurgatoryEnd.KERNEL, there, 60)
    else:
        assert len(stage.calls) == 1 and machine.entered == []
        assert (run.end, run.fault, run.instructions) == (PurgatoryEnd.TRAPPED, ABORT, 50)


def test_an_exception_without_an_address_is_delivered_without_one(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    undefined = replace(ABORT, esr=0x2000000)
    machine.vbar, machine.exceptions = BASE, [undefined]
    monkeypatch.setattr(
        running, "_run", Stage((CpuStop(CpuStopKind.FAULT, BASE, 5, undefined), 50), (LEFT, 60))
    )
    through(purgatory_stage(machine, image(), back_phys=0))
    assert machine.entered == [("sync", 0x2000000, None)]


# -- a capture kernel --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(), (0,), (5,)])
@pytest.mark.parametrize("tree", [0x1230, 0x1234])
def test_a_kernel_that_is_not_followed_stands_at_its_entry_where_one_may_write(
    steps: tuple[int, ...], tree: int, machine: Any
) -> None:
    machine.x, machine.pstate = lambda number: 0x1230 if number == 0 else 0, 0x3C5
    stage = capture_stage(machine, None, image(dtb_mem=tree), steps=steps)  # type: ignore[arg-type]
    seen: list[int] = []
    while True:
        try:
            seen.append(next(stage))
        except StopIteration as end:
            run = end.value
            break
    assert seen == [0] * (0 in steps)
    expected = CaptureEnd.ENTERED if tree == 0x1230 else CaptureEnd.BAD_ENTRY
    assert (run.end, run.pc, run.instructions, run.record, run.fault, run.linux) == (
        expected,
        KERNEL,
        0,
        None,
        None,
        None,
    )


@pytest.mark.parametrize("end", LinuxEnd)
@pytest.mark.parametrize("met", [False, True])
def test_a_linux_is_followed_to_its_end_and_what_it_met_is_told_where_that_ended_it(
    end: LinuxEnd, met: bool, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.x, machine.pstate = lambda number: 0x1230 if number == 0 else 0, 0x3C5
    found, told = LinuxCapture(end, "there", 99), list[Any]()
    loaded = image(dtb_mem=0x1230)
    late = replace(ABORT, when=9)

    def linux_stage(
        board: Any, *, areas: Any, image: Any, steps: Any, progress: Any
    ) -> Generator[int, None, LinuxCapture]:
        assert (board, areas, steps) == ("a board", [PhysRange(0, 1)], (3,))
        kernel = loaded.segment("kernel")
        assert kernel is not None and image == kernel.area
        machine.exceptions += [late] * met
        progress(7)
        progress(1_100_000_001)
        yield 3
        return found

    monkeypatch.setattr(running, "linux_stage", linux_stage)
    run: Any = through(
        capture_stage(
            machine, "a board", loaded, steps=(3,), linux=True, loads=(PhysRange(0, 1),),  # type: ignore[arg-type]
            progress=lambda done, expected: told.append((done, expected)),
        )
    )  # fmt: skip
    assert told == [(7, 1_100_000_000), (1_100_000_001, 1_100_000_001)]
    assert (run.instructions, run.linux, run.record) == (99, found, None)
    assert run.fault is (late if met and end is LinuxEnd.LOST else None)


def test_the_stub_is_run_in_its_segment_with_a_budget_of_its_own(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage((LEFT, 44))
    monkeypatch.setattr(running, "_run", stage)
    own = image()
    own.segments[1] = Segment("kernel", bytes(0x40) + b"CAPTURE1", KERNEL, 0x1000)
    run = through(capture_stage(machine, None, own, steps=(3, 9)))  # type: ignore[arg-type]
    assert stage.calls == [(range(KERNEL, KERNEL + 0x1000), 200_000_000, 0, [(3, 3), (9, 9)], {})]
    assert (run.end, run.instructions, run.fault) == (
        CaptureEnd.ELSEWHERE,
        44,
        None,
    )  # what it met before is not its own

"""The stages of a crash after the first kernel: its purgatory and its capture kernel, run from where the CPU stands.

A stage is a generator that stops at the numbers it was asked for, so that something can be done there; through() runs
it to its end. How it ended is for stages.py to say.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace

from kexecemu.crash.stages import (
    LINUX_ENDS,
    CaptureEnd,
    CaptureRun,
    PurgatoryRun,
    capture_end,
    entry_violations,
    hashing_takes,
    itself_changed,
    purgatory_end,
    told_to_hash,
)
from kexecemu.crash.stub import CaptureRecord, read_record
from kexecemu.crash.verdict import read_verdict
from kexecemu.kernel.image.kimage import COPY, PAGE_DIGESTS, Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.linux.capture import LinuxEnd, linux_stage
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.access import checked
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.cpu.system_cpu import SystemCpu
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.first import FirstKernel, Progress, through

__all__ = ["PARTS", "capture_stage", "purgatory_stage", "run_purgatory"]

PARTS = 256
"""The parts that a purgatory's run is told in, see When.WHILE_HASHING."""

_SLICE = 20_000_000
_LOOP = 2  # instructions of the longest loop that Cpu.spins() knows
# The slowest purgatory worth waiting for takes about 60 instructions a byte (kexec-tools' at -Os takes 50).
_BUDGET_PER_BYTE = 100
_BUDGET_BASE = 20_000_000
_CAPTURE_BUDGET = 200_000_000
_USUAL_PER_BYTE = 35
_USUAL_LINUX = 1_100_000_000


def _passes(image: Kimage, purgatory: LoadedPurgatory) -> int:
    """How often a purgatory may go over the regions: once, again to locate damage, and to mend and check it."""
    located = purgatory.has_symbol("purgatory_region_digests") + (image.segment(PAGE_DIGESTS) is not None)
    return 1 + located + 3 * (image.segment(COPY) is not None)


def run_purgatory(first: FirstKernel, image: Kimage, progress: Progress | None = None) -> PurgatoryRun:
    """Run from the purgatory's entry, where the boot CPU stands, until control leaves it or it ends by itself."""
    cpu = first.board.boot_cpu
    least = first.purgatory_budget
    return through(purgatory_stage(cpu, image, back_phys=cpu.x(30), least=least, progress=progress))


def purgatory_stage(
    cpu: SystemCpu,
    image: Kimage,
    *,
    back_phys: int,
    steps: Sequence[int] = (),
    total: int = 0,
    done: int = 0,
    least: int = 0,
    progress: Progress | None = None,
) -> Generator[int, None, PurgatoryRun]:
    """Run a purgatory from where the CPU stands in it until control leaves it or it ends by itself.

    It stops at each of the steps, 256ths of `total` instructions, that it comes to. back_phys is what x30 was at its
    entry, and done how many instructions it has behind it. least is FirstKernel.purgatory_budget.

    An exception is delivered once VBAR_EL1 points into the purgatory: it has vectors of its own then, and a report.
    Before that the vectors are the dead kernel's, and the exception is the end.
    """
    purgatory = image.purgatory
    assert purgatory is not None
    area, size = purgatory.segment.area, sum(region.size for region in image.sha_regions)
    within = range(area.start, area.end)
    budget = max(least, _BUDGET_BASE) + _BUDGET_PER_BYTE * size * _passes(image, purgatory)
    fault, used = None, done
    with checked(cpu, intact=cpu.ram.read(area.start, len(purgatory.buf)) == purgatory.buf):
        targets = [(step, total * step // PARTS) for step in steps]
        tell = None if progress is None else lambda done: progress(done, max(done, _USUAL_PER_BYTE * size))
        # One that is in a loop before it can have hashed is seen there, and not a slice later.
        look = hashing_takes(told_to_hash(cpu.ram, image)) - _LOOP
        stop, used = yield from _run(cpu, within, budget, used, targets, tell, look=look, deliver=False)
        if stop.fault is not None and cpu.sysreg("VBAR_EL1") in area:
            fault = _deliver(cpu, stop.fault)
            # What it does about that has a budget of its own.
            stop, used = yield from _run(cpu, within, used + budget, used, (), tell)
    verdict = read_verdict(cpu.ram, purgatory)
    end = purgatory_end(cpu, image, stop, used, verdict, back_phys, trapped=fault is not None)
    itself = not purgatory.has_symbol("purgatory_verdict") and itself_changed(cpu.ram, purgatory)
    return PurgatoryRun(end, stop.pc, used, verdict, stop.fault or fault, stop.power, itself)


def _run(
    cpu: Cpu,
    within: range,
    budget: int,
    used: int,
    targets: Iterable[tuple[int, int]],
    tell: Callable[[int], object] | None = None,
    *,
    look: int = 0,
    deliver: bool = True,
) -> Generator[int, None, tuple[CpuStop, int]]:
    """Run to each step, which is given with its number of instructions, and on until something ends it.

    used counts on, up to the budget of instructions, the host's work for them included; tell hears it after each slice.
    A CPU in an endless loop is let go after a slice, and after `look` instructions.
    """
    all_used = cpu.work + budget

    def run(limit: int) -> CpuStop:
        return cpu.run(within=within, limit=limit, budget=max(all_used - cpu.work - used, 0), deliver=deliver)

    for step, instructions in targets:
        if instructions > used:
            stop = run(instructions - used)
            used += stop.instructions
            if stop.kind is not CpuStopKind.DEADLINE:
                return stop, used
        yield step
    while True:
        stop = run(min(_SLICE, look - used if used < look else budget - used))
        used += stop.instructions
        if stop.kind is not CpuStopKind.DEADLINE or used >= all_used - cpu.work or cpu.spins():
            return stop, used
        if tell is not None:
            tell(used)


def _deliver(cpu: Cpu, fault: GuestException) -> GuestException:
    """Let the guest's vectors have an exception that a run ended with; returns it as it is recorded now."""
    fault = replace(fault, delivered=True)
    cpu.exceptions[-1] = fault
    cpu.enter_exception(fault.kind, fault.esr, fault.far if fault.has_far else None)
    return fault


def capture_stage(
    cpu: SystemCpu,
    board: Board,
    image: Kimage,
    *,
    steps: Sequence[int] = (),
    linux: bool = False,
    loads: Sequence[PhysRange] = (),
    progress: Progress | None = None,
) -> Generator[int, None, CaptureRun]:
    """Run the capture kernel from its entry, where the CPU stands; it stops after each number of instructions in steps.

    The stub runs to its end. Of any other kernel only the entry contract is checked, unless it is to be followed as a
    real Linux; progress is called for that one alone, and loads are what its dump should have (physical).
    """
    segment, before = image.segment("kernel"), len(cpu.exceptions)
    assert segment is not None
    if read_record(cpu.ram, segment.mem) is None and CaptureRecord.magic_in(segment.buf) is False:
        wrong = entry_violations(cpu, image)
        if linux and not wrong:
            tell = None if progress is None else lambda done: progress(done, max(done, _USUAL_LINUX))
            run = yield from linux_stage(
                board,
                areas=list(loads),
                image=PhysRange.of(segment.mem, segment.memsz),
                steps=steps,
                progress=tell,
            )
            fault = cpu.exceptions[-1] if run.end is LinuxEnd.LOST and cpu.exceptions[before:] else None
            return CaptureRun(LINUX_ENDS[run.end], cpu.pc, run.instructions, None, fault, linux=run)
        if 0 in steps:
            yield 0
        return CaptureRun(CaptureEnd.BAD_ENTRY if wrong else CaptureEnd.ENTERED, cpu.pc, 0, None)
    within = range(segment.mem, segment.mem + segment.memsz)
    stop, used = yield from _run(cpu, within, _CAPTURE_BUDGET, 0, zip(steps, steps, strict=True))
    record = read_record(cpu.ram, segment.mem)
    fault = next(reversed(cpu.exceptions[before:]), None)
    return CaptureRun(capture_end(stop, record, fault), stop.pc, used, record, fault)

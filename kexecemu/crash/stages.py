"""The two stages behind the first kernel, purgatory and capture kernel: each runs, and is said how it ended.

A stage is a generator that stops at the numbers it was asked for, so that something can be done there; run_purgatory()
and run_capture() run it through.

Everything here is read from the machine: where the CPU stopped and why, and the records that purgatory and capture
stub leave in memory. Nothing depends on a clock; a code that gets nowhere is ended by a budget of instructions.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from kexecemu.crash.stub import CaptureRecord, CaptureState, read_record
from kexecemu.crash.verdict import Verdict, VerdictState, read_verdict
from kexecemu.kernel.image.kimage import COPY, PAGE_DIGESTS, Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.linux.capture import LinuxCapture, LinuxEnd, linux_stage
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.access import checked
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.exceptions import GuestException, Pstate
from kexecemu.machine.cpu.registers import BRANCH_TO_SELF
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.cpu.system_cpu import SystemCpu
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown
from kexecemu.stray.first import FirstKernel, Progress, through

__all__ = [
    "LINUX_ENDS",
    "PARTS",
    "CaptureEnd",
    "CaptureRun",
    "PurgatoryEnd",
    "PurgatoryRun",
    "capture_stage",
    "purgatory_stage",
    "run_capture",
    "run_purgatory",
]


PARTS = 256
"""The parts that a purgatory's run is told in, see When.WHILE_HASHING."""

_WFE, _WFI = 0xD503205F, 0xD503207F

_SLICE = 20_000_000
# The slowest purgatory worth waiting for takes about 60 instructions a byte (kexec-tools' at -Os takes 50).
_BUDGET_PER_BYTE = 100
_BUDGET_BASE = 20_000_000
_CAPTURE_BUDGET = 200_000_000
_USUAL_PER_BYTE = 35
_USUAL_LINUX = 1_100_000_000
_STATES_OF_OBJECTION = (VerdictState.MISMATCH, VerdictState.TRAPPED)


class PurgatoryEnd(enum.StrEnum):
    """How a purgatory ended."""

    KERNEL = "kernel"  # it jumped to the kernel's entry
    MISMATCH = "mismatch"  # it stopped, or had the power switched, because the digests differ
    RETURNED = "returned"  # it went back to where it came from, because something is wrong
    ELSEWHERE = "elsewhere"  # it jumped somewhere that is neither the kernel's entry nor itself
    TRAPPED = "trapped"  # it met an exception
    HUNG = "hung"  # it used up its budget, or stopped without a verdict


@shown()
@dataclass(frozen=True)
class PurgatoryRun:
    """One run of a purgatory: its end, the physical PC there, and the record that it left (None: it keeps none).

    fault is the exception that it met, whether it could report it or not. power is what it asked the firmware for:
    "system_off" or "system_reset".
    """

    end: PurgatoryEnd
    pc: int
    instructions: int
    verdict: Verdict | None
    fault: GuestException | None = None
    power: str | None = None


def _hashed_bytes(image: Kimage) -> int:
    return sum(region.size for region in image.sha_regions)


def _passes(image: Kimage, purgatory: LoadedPurgatory) -> int:
    """How often a purgatory may go over the regions: once, again to locate damage, and to mend and check it."""
    passes = 1
    passes += purgatory.has_symbol("purgatory_region_digests")
    passes += image.segment(PAGE_DIGESTS) is not None
    return passes + 3 * (image.segment(COPY) is not None)


def run_purgatory(first: FirstKernel, image: Kimage, progress: Progress | None = None) -> PurgatoryRun:
    """Run from the purgatory's entry, where the boot CPU stands, until control leaves it or it ends by itself."""
    cpu = first.board.boot_cpu
    return through(purgatory_stage(cpu, image, back_phys=cpu.x(30), progress=progress))


def purgatory_stage(
    cpu: SystemCpu,
    image: Kimage,
    *,
    back_phys: int,
    steps: Sequence[int] = (),
    total: int = 0,
    done: int = 0,
    progress: Progress | None = None,
) -> Generator[int, None, PurgatoryRun]:
    """Run a purgatory from where the CPU stands in it until control leaves it or it ends by itself.

    It stops at each of the steps, 256ths of `total` instructions, that it comes to. back_phys is what x30 was at its
    entry, and done how many instructions it has behind it.

    An exception is delivered once VBAR_EL1 points into the purgatory: it has vectors of its own then, and a report.
    Before that the vectors are the dead kernel's, and the exception is the end.
    """
    purgatory = image.purgatory
    assert purgatory is not None
    area, size = purgatory.segment.area, _hashed_bytes(image)
    within = range(area.start, area.end)
    budget = _BUDGET_BASE + _BUDGET_PER_BYTE * size * _passes(image, purgatory)
    fault, used = None, done
    with checked(cpu, intact=cpu.ram.read(area.start, len(purgatory.buf)) == purgatory.buf):
        targets = [(step, total * step // PARTS) for step in steps]
        stop, used = yield from _to_steps(cpu, within, targets, used, deliver=False)
        if stop is None:
            stop, used = _run_sliced(
                cpu, within, budget, used, _USUAL_PER_BYTE * size, progress, deliver=False
            )
        if stop.fault is not None and cpu.sysreg("VBAR_EL1") in area:
            fault = _deliver(cpu, stop.fault)
            # What it does about that has a budget of its own.
            stop, used = _run_sliced(cpu, within, used + budget, used, 0, progress, deliver=True)
    verdict = read_verdict(cpu.ram, purgatory)
    end = _purgatory_end(cpu, image, purgatory, stop, verdict, back_phys)
    return PurgatoryRun(end, stop.pc, used, verdict, stop.fault or fault, stop.power)


def _to_steps(
    cpu: Cpu, within: range, targets: Sequence[tuple[int, int]], used: int, *, deliver: bool
) -> Generator[int, None, tuple[CpuStop | None, int]]:
    """Run to each step, which is given with its number of instructions; the stop where the run ended before one."""
    for step, instructions in targets:
        if instructions > used:
            stop = cpu.run(within=within, limit=instructions - used, deliver=deliver)
            used += stop.instructions
            if stop.kind is not CpuStopKind.DEADLINE:
                return stop, used
        yield step
    return None, used


def _deliver(cpu: Cpu, fault: GuestException) -> GuestException:
    """Let the guest's vectors have an exception that a run ended with; returns it as it is recorded now."""
    fault = replace(fault, delivered=True)
    cpu.exceptions[-1] = fault
    cpu.enter_exception(fault.kind, fault.esr, fault.far if fault.has_far else None)
    return fault


def _run_sliced(
    cpu: Cpu,
    within: range,
    budget: int,
    used: int,
    expected: int,
    progress: Progress | None,
    *,
    deliver: bool,
) -> tuple[CpuStop, int]:
    """Run until something else than the slice ends it; used counts on, up to the budget of instructions."""
    while True:
        stop = cpu.run(within=within, limit=min(_SLICE, budget - used), deliver=deliver)
        used += stop.instructions
        if stop.kind is not CpuStopKind.DEADLINE or used >= budget or cpu.spins():
            return stop, used
        if progress is not None:
            progress(used, max(expected, used))


def _purgatory_end(
    cpu: Cpu,
    image: Kimage,
    purgatory: LoadedPurgatory,
    stop: CpuStop,
    verdict: Verdict | None,
    back_phys: int,
) -> PurgatoryEnd:
    objects = verdict is not None and verdict.state in _STATES_OF_OBJECTION
    where = stop.pc if stop.fault is None else stop.fault.pc
    # A caller that nothing can be fetched at (a virtual address, say) was returned to all the same.
    if objects and where == back_phys and where not in purgatory.segment.area and where != image.kernel_entry:
        return PurgatoryEnd.RETURNED
    if stop.kind is CpuStopKind.FAULT:
        # A jump to where nothing can be fetched is a jump before it is an exception.
        astray = stop.fault is not None and stop.fault.pc not in purgatory.segment.area
        return PurgatoryEnd.ELSEWHERE if astray else PurgatoryEnd.TRAPPED
    if stop.kind is CpuStopKind.LEFT:
        return PurgatoryEnd.KERNEL if stop.pc == image.kernel_entry else PurgatoryEnd.ELSEWHERE
    if purgatory.has_symbol("purgatory_verdict"):
        if verdict is not None and objects:
            mismatch = verdict.state is VerdictState.MISMATCH
            return PurgatoryEnd.MISMATCH if mismatch else PurgatoryEnd.TRAPPED
        return PurgatoryEnd.HUNG
    return PurgatoryEnd.MISMATCH if _refuses(cpu, purgatory, stop) else PurgatoryEnd.HUNG


def _refuses(cpu: Cpu, purgatory: LoadedPurgatory, stop: CpuStop) -> bool:
    """A foreign purgatory keeps no record: that it refuses is known by where it stands.

    kexec-tools' ends a mismatch in an endless loop of one branch in purgatory(), others wait for an interrupt that is
    masked. A place that was not loaded as such a loop is none: there a stray write stopped it, and it has judged
    nothing.
    """
    where = stop.pc - 4 if stop.kind is CpuStopKind.IDLE else stop.pc
    if stop.kind is not CpuStopKind.IDLE and not cpu.spins():
        return False
    offset = where - purgatory.segment.mem
    if not 0 <= offset <= len(purgatory.buf) - 4:
        return False
    word = int.from_bytes(purgatory.buf[offset : offset + 4], "little")
    if word not in (BRANCH_TO_SELF, _WFI, _WFE) or cpu.ram.read_u32(where) != word:
        return False
    phys, size = purgatory.symbol_table().get("purgatory", (0, 0))
    return not size or where in PhysRange.of(phys, size)


class CaptureEnd(enum.StrEnum):
    """How the capture kernel ended."""

    DONE = "done"  # it went through the dump (a Linux: copied it) and powered off
    ENTERED = "entered"  # a kernel that is not the stub: stopped at its first instruction, contract kept
    NO_DUMP = "no dump"  # device tree or core header lead to no dump
    BAD_ENTRY = "bad entry"  # the entry contract was broken
    TRAPPED = "trapped"
    ELSEWHERE = "elsewhere"
    HUNG = "hung"
    HEADERS = "headers read"  # a Linux read the dump's headers, and switched off without copying it
    OFF = "off"  # a Linux switched off without having said what came of the dump
    PANIC = "panic"  # a Linux gave up


LINUX_ENDS = {
    LinuxEnd.DONE: CaptureEnd.DONE,
    LinuxEnd.NO_DUMP: CaptureEnd.NO_DUMP,
    LinuxEnd.HEADERS: CaptureEnd.HEADERS,
    LinuxEnd.OFF: CaptureEnd.OFF,
    LinuxEnd.PANIC: CaptureEnd.PANIC,
    LinuxEnd.LOST: CaptureEnd.TRAPPED,
    LinuxEnd.STUCK: CaptureEnd.HUNG,
    LinuxEnd.BUDGET: CaptureEnd.HUNG,
}


@shown()
@dataclass(frozen=True)
class CaptureRun:
    """One run of a capture kernel; record is the stub's own account, None for another kernel.

    linux is the account of a real Linux that was followed to its end.
    """

    end: CaptureEnd
    pc: int
    instructions: int
    record: CaptureRecord | None
    fault: GuestException | None = None
    linux: LinuxCapture | None = None


def entry_violations(cpu: Cpu, image: Kimage) -> list[str]:
    """What of arm64's boot protocol is not met where the CPU stands, in words; [] when all is well."""
    wrong = []
    if cpu.x(0) != image.dtb_mem:
        wrong.append(f"x0 is {cpu.x(0):#x}, not the device tree at {image.dtb_mem:#x}")
    wrong += [f"x{number} is {cpu.x(number):#x}, not 0" for number in (1, 2, 3) if cpu.x(number)]
    if cpu.sysreg("SCTLR_EL1") & 1:
        wrong.append("the MMU is on")
    if cpu.pstate & Pstate.DAIF != Pstate.DAIF:
        wrong.append("exceptions are not all masked")
    return wrong


def run_capture(first: FirstKernel, image: Kimage) -> CaptureRun:
    """Run the capture kernel from its entry, where the boot CPU stands."""
    return through(capture_stage(first.board.boot_cpu, first.board, image))


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
    segment = image.segment("kernel")
    assert segment is not None
    if read_record(cpu.ram, segment.mem) is None and CaptureRecord.magic_in(segment.buf) is False:
        wrong = entry_violations(cpu, image)
        if linux and not wrong:
            return (yield from _linux_stage(cpu, board, loads, steps, progress))
        if 0 in steps:
            yield 0
        return CaptureRun(CaptureEnd.BAD_ENTRY if wrong else CaptureEnd.ENTERED, cpu.pc, 0, None)
    before = len(cpu.exceptions)
    within = range(segment.mem, segment.mem + segment.memsz)
    stop, used = yield from _to_steps(cpu, within, [(step, step) for step in steps], 0, deliver=True)
    if stop is None:
        stop, used = _run_sliced(cpu, within, _CAPTURE_BUDGET, used, 0, None, deliver=True)
    record = read_record(cpu.ram, segment.mem)
    fault = cpu.exceptions[-1] if len(cpu.exceptions) > before else None
    return CaptureRun(_capture_end(stop, record, fault), stop.pc, used, record, fault)


def _linux_stage(
    cpu: SystemCpu, board: Board, loads: Sequence[PhysRange], steps: Sequence[int], progress: Progress | None
) -> Generator[int, None, CaptureRun]:
    seen = len(cpu.exceptions)
    tell = None if progress is None else lambda done: progress(done, max(done, _USUAL_LINUX))
    run = yield from linux_stage(board, areas=list(loads), steps=steps, progress=tell)
    end = LINUX_ENDS[run.end]
    fault = cpu.exceptions[-1] if run.end is LinuxEnd.LOST and len(cpu.exceptions) > seen else None
    return CaptureRun(end, cpu.pc, run.instructions, None, fault, linux=run)


def _capture_end(stop: CpuStop, record: CaptureRecord | None, fault: GuestException | None) -> CaptureEnd:
    # The stub's own probing loads may abort and are expected; only an exception that ended it counts.
    if stop.kind is CpuStopKind.FAULT or (record is not None and record.state is CaptureState.TRAPPED):
        return CaptureEnd.TRAPPED
    if stop.kind is CpuStopKind.LEFT:
        return CaptureEnd.TRAPPED if fault is not None else CaptureEnd.ELSEWHERE
    if record is None or stop.kind is CpuStopKind.DEADLINE:
        return CaptureEnd.HUNG
    if record.state is CaptureState.DONE:
        return CaptureEnd.BAD_ENTRY if record.violations else CaptureEnd.DONE
    if record.state is CaptureState.NO_DUMP:
        return CaptureEnd.NO_DUMP
    if record.state is CaptureState.CONTRACT_VIOLATED:
        return CaptureEnd.BAD_ENTRY
    return CaptureEnd.HUNG

"""From the jump out of the first kernel to the capture kernel's end: what ran, and how each part ended.

Everything here is read from the machine: where the CPU stopped and why, and the records that purgatory and capture
stub leave in memory. Nothing depends on a clock; a code that gets nowhere is ended by a budget of instructions.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kexecemu.crash.stub import CaptureRecord, CaptureState, read_record
from kexecemu.crash.verdict import Verdict, VerdictState, read_verdict
from kexecemu.kernel.kimage import COPY, PAGE_DIGESTS, Kimage
from kexecemu.kernel.model import Kernel
from kexecemu.kernel.purgatory import LoadedPurgatory
from kexecemu.linux.capture import LinuxCapture, LinuxEnd, run_linux
from kexecemu.machine.access import checked
from kexecemu.machine.cpu import Cpu, Stop, StopKind
from kexecemu.machine.exceptions import GuestFault, Pstate
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = [
    "LINUX_ENDS",
    "CaptureEnd",
    "CaptureRun",
    "Interlude",
    "Progress",
    "PurgatoryEnd",
    "PurgatoryRun",
    "run_capture",
    "run_purgatory",
]

# Called with (instructions done, instructions expected); the second is a guess.
Progress = Callable[[int, int], None]

# So many instructions into a run the host does something to memory; the run goes on from there.
Interlude = tuple[int, Callable[[], object]]

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
    fault: GuestFault | None = None
    power: str | None = None


def _hashed_bytes(image: Kimage) -> int:
    return sum(region.size for region in image.sha_regions)


def _passes(image: Kimage, purgatory: LoadedPurgatory) -> int:
    """How often a purgatory may go over the regions: once, again to locate damage, and to mend and check it."""
    passes = 1
    passes += purgatory.has_symbol("purgatory_region_digests")
    passes += image.segment(PAGE_DIGESTS) is not None
    return passes + 3 * (image.segment(COPY) is not None)


def run_purgatory(
    kernel: Kernel,
    image: Kimage,
    purgatory: LoadedPurgatory,
    progress: Progress | None = None,
    interlude: Interlude | None = None,
    back_phys: int | None = None,
) -> PurgatoryRun:
    """Run from the purgatory's entry, where the boot CPU stands, until control leaves it or it ends by itself.

    Where the CPU stands in the middle of it instead, back_phys says what x30 was at the entry.

    An exception is delivered once VBAR_EL1 points into the purgatory: it has vectors of its own then, and a report.
    Before that the vectors are the dead kernel's, and the exception is the end.
    """
    cpu = kernel.board.boot_cpu
    area = purgatory.segment.area
    size = _hashed_bytes(image)
    if back_phys is None:
        back_phys = cpu.x(30)
    within = range(area.start, area.end)
    budget = _BUDGET_BASE + _BUDGET_PER_BYTE * size * _passes(image, purgatory)
    fault = None
    with checked(cpu, intact=kernel.ram.read(area.start, len(purgatory.buf)) == purgatory.buf):
        usual = _USUAL_PER_BYTE * size
        stop, used = _run_past(interlude, cpu, within, budget, usual, progress, deliver=False)
        if stop.fault is not None and cpu.sysreg("VBAR_EL1") in area:
            fault = _deliver(cpu, stop.fault)
            stop, more = _run_sliced(cpu, within, budget, used, progress, deliver=True)
            used += more
    verdict = read_verdict(kernel.ram, purgatory)
    end = _purgatory_end(kernel, image, purgatory, stop, verdict, back_phys)
    return PurgatoryRun(end, stop.pc, used, verdict, stop.fault or fault, stop.power)


def _run_past(
    interlude: Interlude | None,
    cpu: Cpu,
    within: range,
    budget: int,
    expected: int,
    progress: Progress | None,
    *,
    deliver: bool,
) -> tuple[Stop, int]:
    """_run_sliced() with an interlude on the way, if there is one; a run that is over before that ends there."""
    before = 0
    if interlude is not None:
        stop = cpu.run(within=within, limit=interlude[0], deliver=deliver)
        before = stop.instructions
        if stop.kind is not StopKind.DEADLINE:
            return stop, before
        interlude[1]()
    stop, used = _run_sliced(cpu, within, budget, expected, progress, deliver=deliver)
    return stop, before + used


def _deliver(cpu: Cpu, fault: GuestFault) -> GuestFault:
    """Let the guest's vectors have an exception that a run ended with; returns it as it is recorded now."""
    fault = replace(fault, delivered=True)
    cpu.exceptions[-1] = fault
    cpu.enter_exception(fault.kind, fault.esr, fault.far if fault.has_far else None)
    return fault


def _run_sliced(
    cpu: Cpu, within: range, budget: int, expected: int, progress: Progress | None, *, deliver: bool
) -> tuple[Stop, int]:
    used = 0
    while True:
        stop = cpu.run(within=within, limit=min(_SLICE, budget - used), deliver=deliver)
        used += stop.instructions
        if stop.kind is not StopKind.DEADLINE or used >= budget or cpu.spins():
            return stop, used
        if progress is not None:
            progress(used, max(expected, used))


def _purgatory_end(
    kernel: Kernel,
    image: Kimage,
    purgatory: LoadedPurgatory,
    stop: Stop,
    verdict: Verdict | None,
    back_phys: int,
) -> PurgatoryEnd:
    objects = verdict is not None and verdict.state in _STATES_OF_OBJECTION
    where = stop.pc if stop.fault is None else stop.fault.pc
    # A caller that nothing can be fetched at (a virtual address, say) was returned to all the same.
    if objects and where == back_phys and where not in purgatory.segment.area and where != image.kernel_entry:
        return PurgatoryEnd.RETURNED
    if stop.kind is StopKind.FAULT:
        # A jump to where nothing can be fetched is a jump before it is an exception.
        astray = stop.fault is not None and stop.fault.pc not in purgatory.segment.area
        return PurgatoryEnd.ELSEWHERE if astray else PurgatoryEnd.TRAPPED
    if stop.kind is StopKind.LEFT:
        return PurgatoryEnd.KERNEL if stop.pc == image.kernel_entry else PurgatoryEnd.ELSEWHERE
    if purgatory.has_symbol("purgatory_verdict"):
        if verdict is not None and objects:
            mismatch = verdict.state is VerdictState.MISMATCH
            return PurgatoryEnd.MISMATCH if mismatch else PurgatoryEnd.TRAPPED
        return PurgatoryEnd.HUNG
    # A foreign purgatory keeps no record. Those that are known end a mismatch in an endless loop of one branch, or
    # wait for an interrupt that is masked.
    stopped = stop.kind is StopKind.IDLE or kernel.board.boot_cpu.spins()
    return PurgatoryEnd.MISMATCH if stopped else PurgatoryEnd.HUNG


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
    fault: GuestFault | None = None
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


def run_capture(
    kernel: Kernel,
    image: Kimage,
    *,
    linux: bool = False,
    loads: Sequence[PhysRange] = (),
    progress: Progress | None = None,
    interlude: Interlude | None = None,
) -> CaptureRun:
    """Run the capture kernel from its entry, where the boot CPU stands.

    The stub runs to its end. Of any other kernel only the entry contract is checked, unless it is to be followed as a
    real Linux; progress is called for that one alone, and loads are what its dump should have (physical).
    """
    cpu = kernel.board.boot_cpu
    segment = image.segment("kernel")
    assert segment is not None
    if read_record(kernel.ram, segment.mem) is None and CaptureRecord.magic_in(segment.buf) is False:
        wrong = entry_violations(cpu, image)
        if linux and not wrong:
            return _run_linux(kernel, loads, progress)
        return CaptureRun(CaptureEnd.BAD_ENTRY if wrong else CaptureEnd.ENTERED, cpu.pc, 0, None)
    before = len(cpu.exceptions)
    within = range(segment.mem, segment.mem + segment.memsz)
    budget = _CAPTURE_BUDGET
    stop, used = _run_past(interlude, cpu, within, budget, budget, None, deliver=True)
    record = read_record(kernel.ram, segment.mem)
    fault = cpu.exceptions[-1] if len(cpu.exceptions) > before else None
    return CaptureRun(_capture_end(stop, record, fault), stop.pc, used, record, fault)


def _run_linux(kernel: Kernel, loads: Sequence[PhysRange], progress: Progress | None) -> CaptureRun:
    board = kernel.board
    run = run_linux(
        board,
        areas=list(loads),
        progress=None if progress is None else lambda done: progress(done, max(done, _USUAL_LINUX)),
    )
    end = LINUX_ENDS[run.end]
    return CaptureRun(end, board.boot_cpu.pc, run.instructions, None, linux=run)


def _capture_end(stop: Stop, record: CaptureRecord | None, fault: GuestFault | None) -> CaptureEnd:
    # The stub's own probing loads may abort and are expected; only an exception that ended it counts.
    if stop.kind is StopKind.FAULT or (record is not None and record.state is CaptureState.TRAPPED):
        return CaptureEnd.TRAPPED
    if stop.kind is StopKind.LEFT:
        return CaptureEnd.TRAPPED if fault is not None else CaptureEnd.ELSEWHERE
    if record is None or stop.kind is StopKind.DEADLINE:
        return CaptureEnd.HUNG
    if record.state is CaptureState.DONE:
        return CaptureEnd.BAD_ENTRY if record.violations else CaptureEnd.DONE
    if record.state is CaptureState.NO_DUMP:
        return CaptureEnd.NO_DUMP
    if record.state is CaptureState.CONTRACT_VIOLATED:
        return CaptureEnd.BAD_ENTRY
    return CaptureEnd.HUNG

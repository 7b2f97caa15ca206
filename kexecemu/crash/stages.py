"""How a purgatory and a capture kernel ended, as the machine says.

Everything here is read from it: where the CPU stopped and why, and the records that purgatory and capture stub leave in
memory. Nothing depends on a clock; running.py ends a code that gets nowhere by a budget of instructions.
"""

import enum
from dataclasses import dataclass

from kexecemu.crash.stub import CaptureRecord, CaptureState
from kexecemu.crash.verdict import Verdict, VerdictState
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.linux.capture import LinuxCapture, LinuxEnd
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.exceptions import GuestException, Pstate
from kexecemu.machine.cpu.registers import BRANCH_TO_SELF, WFE, WFI
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["LINUX_ENDS", "CaptureEnd", "CaptureRun", "PurgatoryEnd", "PurgatoryRun"]
__all__ += ["capture_end", "entry_violations", "hashing_takes"]
__all__ += ["itself_changed", "purgatory_end", "told_to_hash"]


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
    "system_off", "system_reset" or "cpu_off". itself says of one without a record that it has a digest of its own code
    and symbols, and that these are not as loaded.
    """

    end: PurgatoryEnd
    pc: int
    instructions: int
    verdict: Verdict | None
    fault: GuestException | None = None
    power: str | None = None
    itself: bool = False

    @property
    def act(self) -> str:
        """What it did where it ended by itself, for "the purgatory ..."."""
        return _ACTS.get(self.power or "", "stopped")

    @property
    def content(self) -> bool:
        """It found the image as loaded, says its record: what kept it from the kernel was something else."""
        return self.verdict is not None and self.verdict.state is VerdictState.MATCH


_ACTS = {
    "system_off": "switched the machine off",
    "system_reset": "reset the machine",
    "cpu_off": "switched its CPU off",
}


def hashing_takes(size: int) -> int:
    """Instructions that a SHA-256 of so many bytes takes at the very least.

    More than 16 for each of its blocks of 64 bytes, be they the CPU's own for it. The last block holds the length.
    """
    return 16 * ((size + 72) // 64)


def purgatory_end(
    cpu: Cpu,
    image: Kimage,
    stop: CpuStop,
    instructions: int,
    verdict: Verdict | None,
    back_phys: int,
    *,
    trapped: bool = False,
) -> PurgatoryEnd:
    """How a purgatory ended that stopped there after so many instructions.

    By its record, and by where it would have returned to; trapped says that its vectors had an exception.
    """
    purgatory = image.purgatory
    assert purgatory is not None
    objects = verdict is not None and verdict.state in (VerdictState.MISMATCH, VerdictState.TRAPPED)
    where = stop.pc if stop.fault is None else stop.fault.pc
    # A caller that nothing can be fetched at (a virtual address, say) was returned to all the same.
    if objects and where == back_phys and where not in purgatory.segment.area and where != image.kernel_entry:
        return PurgatoryEnd.RETURNED
    if stop.leaves(purgatory.segment.area):
        there = stop.kind is CpuStopKind.LEFT and stop.pc == image.kernel_entry
        return PurgatoryEnd.KERNEL if there else PurgatoryEnd.ELSEWHERE
    if stop.kind is CpuStopKind.FAULT:
        return PurgatoryEnd.TRAPPED
    if purgatory.has_symbol("purgatory_verdict"):
        if verdict is not None and objects:
            mismatch = verdict.state is VerdictState.MISMATCH
            return PurgatoryEnd.MISMATCH if mismatch else PurgatoryEnd.TRAPPED
        return PurgatoryEnd.HUNG
    if trapped:
        return PurgatoryEnd.TRAPPED
    hashed = told_to_hash(cpu.ram, image)
    if itself_changed(cpu.ram, purgatory):
        hashed = min(hashed, _covered(purgatory).size)
    refuses = _refuses(cpu, purgatory, stop) and instructions >= hashing_takes(hashed)
    return PurgatoryEnd.MISMATCH if refuses else PurgatoryEnd.HUNG


def _covered(purgatory: LoadedPurgatory) -> PhysRange:
    """What its own digest covers, up to and with that digest; empty for a purgatory that was loaded without."""
    end, size = purgatory.symbol_table().get("purgatory_self_digest", (purgatory.segment.mem, 0))
    at = end - purgatory.segment.mem
    if not any(purgatory.buf[at : at + size]):
        return PhysRange.of(purgatory.segment.mem, 0)
    return PhysRange(purgatory.entry, end + size)


def itself_changed(ram: Ram, purgatory: LoadedPurgatory) -> bool:
    """Its own digest would notice: what that covers, or the digest itself, is not as loaded."""
    covered = _covered(purgatory)
    at = covered.start - purgatory.segment.mem
    return ram.read(covered.start, covered.size) != purgatory.buf[at : at + covered.size]


def told_to_hash(ram: Ram, image: Kimage) -> int:
    """Bytes that a purgatory has hashed if it hashed at all: a stray write may have made its regions shorter."""
    purgatory = image.purgatory
    assert purgatory is not None
    names = ("purgatory_sha_regions", "sha256_regions")
    table = next((purgatory.symbol_phys(name) for name in names if purgatory.has_symbol(name)), None)
    sizes = [region.size for region in image.sha_regions]
    if table is None:
        return sum(sizes)
    return sum(min(size, ram.read_u64(table + 16 * at + 8)) for at, size in enumerate(sizes))


def _refuses(cpu: Cpu, purgatory: LoadedPurgatory, stop: CpuStop) -> bool:
    """A foreign purgatory keeps no record: that it refuses is known by where it stands.

    Ours has purgatory_stop for it. kexec-tools' ends a mismatch in an endless loop of one branch in purgatory(), others
    wait for an event, or for an interrupt that is masked. A place that was not loaded as such a loop is none: there a
    stray write stopped it, and it has judged nothing. Neither has one that came there sooner than it can hash: see
    purgatory_end().
    """
    where = stop.pc - 4 if stop.kind is CpuStopKind.IDLE else stop.pc
    if stop.kind is not CpuStopKind.IDLE:
        if not cpu.spins():
            return False
        if cpu.word_at(where) not in (BRANCH_TO_SELF, WFE):
            where -= 4  # the loop begins with the WFE before
    if where not in purgatory.segment.area:
        return False
    offset = where - purgatory.segment.mem
    word = int.from_bytes(purgatory.buf[offset : offset + 4], "little")
    if word not in (BRANCH_TO_SELF, WFI, WFE) or cpu.ram.read_u32(where) != word:
        return False
    symbols = purgatory.symbol_table()
    stops = symbols.get("purgatory_stop") or symbols.get("purgatory")
    return stops is None or not stops[1] or where in PhysRange.of(*stops)


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


def capture_end(stop: CpuStop, record: CaptureRecord | None, fault: GuestException | None) -> CaptureEnd:
    """How a stub ended that stopped there, by its record and the exception that it met."""
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

"""Trials in QEMU: memory written behind the CPUs' backs, and breakpoints where images are entered.

What came of one is read from the machine: where its CPU stands, the record that a purgatory leaves, memory beside what
was loaded, and what the capture kernel's init says. QEMU counts no instructions, so one thing is by the clock: a CPU
that still moves, with no word, after PURGATORY_SECONDS.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from kexecemu.crash.damage import Damage, find_damage
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome, judge, written_bytes_differ
from kexecemu.crash.stages import (
    LINUX_ENDS,
    CaptureEnd,
    CaptureRun,
    PurgatoryEnd,
    PurgatoryRun,
    itself_changed,
)
from kexecemu.crash.verdict import read_verdict
from kexecemu.errors import InputError
from kexecemu.folders import temporary_folder
from kexecemu.kbuild.gdbstub import Registers
from kexecemu.kbuild.qemu import Qemu, QemuMachine, restored_words
from kexecemu.kbuild.qemu_dump import MemoryHeld, dump_loads, true_dump
from kexecemu.kbuild.qemu_ends import (
    PANIC_END,
    SAID,
    linux_end,
    place_of_pc,
    purgatory_end_of,
    store_fault,
)
from kexecemu.kbuild.qemu_load import LIMIT_SECONDS, boot_command, last_line, loaded_in
from kexecemu.kbuild.trial import (
    Loaded,
    Trial,
    TrialEnd,
    WhatIsWritten,
    place_of,
    setup_of,
    trial_end,
)
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, Injection, When

__all__ = ["MOMENTS", "PURGATORY_SECONDS", "QemuRuns", "qemu_runs", "run_in_qemu"]

PURGATORY_SECONDS = 30.0
"""For the purgatory, which takes a second where it has no caches and no SHA-2 instructions."""

MOMENTS = (When.AFTER_LOAD, When.AT_JUMP, When.AFTER_CHECK)
"""When something can be written: where QEMU stands, and the last as the kernel is entered."""

_LOOK_SECONDS = 0.4
_LOOKS = 3  # in which a CPU that masks everything has not moved: it has stopped for good
_LOOP_BYTES = 8
_ESCAPED = "\\%03o"  # a byte, for printf
Hear = Callable[[bytes], object]


def run_in_qemu(
    trial: Trial,
    machine: QemuMachine,
    written: WhatIsWritten,
    hear: Hear | None = None,
) -> TrialEnd:
    """One boot, load, crash in a QEMU of its own. InputError where the kernel does not come as far as the load."""
    setup = setup_of(trial)
    with temporary_folder("kexecemu-trial-") as folder:
        command = boot_command(setup, machine, folder)
        disk = folder / "dump" if trial.dump else None
        if disk is not None:
            with open(disk, "wb") as file:
                file.truncate(1 << 30)
            path = str(disk).replace(",", ",,")
            command += ["-drive", f"file={path},format=raw,if=none,id=dump"]
            command += ["-device", "virtio-blk-device,drive=dump"]
        with Qemu(command, hear or (lambda data: None)) as qemu:
            return _Run(qemu, loaded_in(qemu, setup), disk).follow(written)


class QemuRuns:
    """As many crashes as one likes of one boot: each begins with the machine as it was when the image was loaded.

    None has a disk for its dump. loaded is not to be changed.
    """

    def __init__(self, trial: Trial, machine: QemuMachine, folder: Path) -> None:
        """InputError where the kernel does not come as far as the load. What is kept goes to the folder."""
        setup = setup_of(trial)
        self._command = boot_command(setup, machine, folder)
        self._state = folder / "state"
        with Qemu(self._command) as qemu:
            self.loaded = loaded_in(qemu, setup)
            qemu.save_state(self._state)
            self._console = qemu.console

    def run(self, written: WhatIsWritten) -> TrialEnd:
        """One crash, with what is written astray after the load. Several may run at a time, in threads."""
        region = self.loaded.region
        ram = Ram(self.loaded.ram.banks)
        ram.write(region.start, self.loaded.ram.read(region.start, region.size))
        with Qemu([*self._command, *restored_words(self._state)]) as qemu:
            qemu.wait_for_state()
            return _Run(qemu, replace(self.loaded, ram=ram), None, self._console).follow(written)


@contextmanager
def qemu_runs(trial: Trial, machine: QemuMachine) -> Iterator[QemuRuns]:
    """A kernel that is up in QEMU with its crash kernel loaded, kept in a folder that goes afterwards."""
    with temporary_folder("kexecemu-trial-") as folder:
        yield QemuRuns(trial, machine, folder)


@dataclass
class _Run:
    qemu: Qemu
    loaded: Loaded
    disk: Path | None
    before: str = ""  # on the console, before this QEMU was started
    injections: list[Injection] = field(default_factory=list)
    cpu: int | None = None  # the one that crashed

    def follow(self, written: WhatIsWritten) -> TrialEnd:
        loaded, gdb = self.loaded, self.qemu.gdb
        image, faults = loaded.image, written(loaded)
        if other := next((one.when for one in faults if one.when not in MOMENTS), None):
            raise InputError(f"in QEMU there is no moment {other.value}, but {', '.join(MOMENTS)}")

        def write(when: When) -> str:
            return self._write(loaded, [one for one in faults if one.when is when])

        stores = write(When.AFTER_LOAD)
        gdb.set_breakpoint(image.start)
        printed = len(self.qemu.console)
        gdb.resume()
        self.qemu.type(f"{stores}\n".encode())
        stopped = gdb.wait_for_stop(LIMIT_SECONDS)
        self.qemu.check_running()
        if not stopped or gdb.registers().pc != image.start:
            return self._end(
                Outcome.HUNG, loaded, [], None, None, stood=last_line(self.qemu.console[printed:])
            )
        gdb.clear_breakpoint(image.start)
        self.cpu = gdb.current_cpu()
        entered = gdb.registers()
        self.qemu.copy_memory(loaded.region, loaded.ram)
        self._look_at_stores(loaded, self.qemu.console[printed:])
        write(When.AT_JUMP)
        loads = dump_loads(self.qemu, image) if self.disk is not None else []
        damage = find_damage(loaded.ram, image, purgatory=True)
        purgatory, stood = None, ""
        if image.purgatory is not None:
            purgatory, stood = self._purgatory(loaded)
            entered_kernel = purgatory.end is PurgatoryEnd.KERNEL
        else:
            entered_kernel = True
        if entered_kernel:
            write(When.AFTER_CHECK)
        damage += find_damage(loaded.ram, image, purgatory=False)
        for one in self.injections:
            self._see(loaded, PhysRange.of(one.phys, len(one.before)))
        differ = written_bytes_differ(loaded.ram, self.injections)
        capture, dump = self._capture(image.kernel_entry, loads) if entered_kernel else (None, None)
        word = Dump.WRONG if dump is False else Dump.TRUE
        outcome = judge(loaded.ram, self.injections, damage, purgatory, capture, dump=word, differ=differ)
        stood = "" if capture is not None else stood
        return self._end(outcome, loaded, damage, purgatory, capture, el=entered.el, dump=dump, stood=stood)

    def _write(self, loaded: Loaded, faults: Sequence[Fault]) -> str:
        """Do what DMA does; returned is what init is to be told of what its CPU does (first.sh)."""
        stores = ""
        for fault in faults:
            place = place_of(loaded, fault)
            self._see(loaded, place)
            before = loaded.ram.read(place.start, place.size)
            data = fault.data(before)
            if fault.by is By.CPU:
                stores += f"store {place.start:#x} {''.join(map(_ESCAPED.__mod__, data))}\n"
            else:
                loaded.ram.write(place.start, data)
                self.qemu.gdb.write_phys(place.start, data)
            self.injections.append(Injection(fault, place.start, before, data))
        return stores

    def _see(self, loaded: Loaded, place: PhysRange) -> None:
        """Have what is outside of the crash region, too, in the RAM of ours as it is now."""
        if not loaded.region.covers(place):
            self.qemu.copy_memory(place, loaded.ram)

    def _look_at_stores(self, loaded: Loaded, console: str) -> None:
        """What became of those that a CPU was to do: the kernel's own words say which of them was a fault."""
        fault = store_fault(console)
        for at, one in enumerate(self.injections):
            if one.fault.by is By.CPU:
                place = PhysRange.of(one.phys, len(one.before))
                self._see(loaded, place)
                after = loaded.ram.read(place.start, place.size)
                refused = fault if after == one.before != one.after else None
                self.injections[at] = replace(
                    one, after=after, exception=refused, cpu=fault.cpu if fault else None
                )

    def _end(
        self,
        outcome: Outcome,
        loaded: Loaded,
        damage: list[Damage],
        purgatory: PurgatoryRun | None,
        capture: CaptureRun | None,
        *,
        el: int | None = None,
        dump: bool | None = None,
        stood: str = "",
    ) -> TrialEnd:
        console = self.before + self.qemu.console
        found = re.search(r"^first: Linux (\S+) is up", console, re.MULTILINE)
        return trial_end(
            outcome,
            loaded.image,
            self.injections,
            damage,
            purgatory,
            capture,
            console=console,
            el=el,
            release=found[1] if found else "",
            dump=dump,
            stood=stood,
        )

    # -- the purgatory ---------------------------------------------------------------------------------------------

    def _purgatory(self, loaded: Loaded) -> tuple[PurgatoryRun, str]:
        """From its entry to its end, with memory read again; and where it stood, in words."""
        image, gdb, qemu = loaded.image, self.qemu.gdb, self.qemu
        purgatory = image.purgatory
        assert purgatory is not None
        before = self._exception("ELR", gdb.registers())
        told = image.kernel_entry
        if purgatory.has_symbol("purgatory_kernel_entry"):
            told = loaded.ram.read_u64(purgatory.symbol_phys("purgatory_kernel_entry"))
        doors = {image.kernel_entry, told & ~3} - {0}
        for door in doors:
            gdb.set_breakpoint(door)
        gdb.resume()
        registers, stopped = self._until_it_ends(doors)
        for door in doors:
            gdb.clear_breakpoint(door)
        qemu.copy_memory(loaded.region, loaded.ram)
        verdict = read_verdict(loaded.ram, purgatory)
        elr, esr = (self._exception(name, registers) for name in ("ELR", "ESR"))
        elr = None if elr == before else elr  # what the old kernel has left
        end = purgatory_end_of(loaded, registers.pc, verdict, doors=doors, stopped=stopped, elr=elr, esr=esr)
        stood = f"PC {registers.pc:#x}, in {place_of_pc(loaded.image, registers.pc)}"
        if elr is not None and elr not in purgatory.segment.area:
            stood += f", after an exception at {elr:#x}, in {place_of_pc(loaded.image, elr)}"
        stood += "" if stopped else f", still moving after {PURGATORY_SECONDS:.0f} s"
        itself = not purgatory.has_symbol("purgatory_verdict") and itself_changed(loaded.ram, purgatory)
        return PurgatoryRun(end, registers.pc, 0, verdict, itself=itself), stood

    def _exception(self, register: str, registers: Registers) -> int | None:
        """ELR or ESR of the last exception, at the level that the CPU is at."""
        return self.qemu.gdb.system_register(f"{register}_EL{max(registers.el, 1)}")

    def _until_it_ends(self, doors: set[int]) -> tuple[Registers, bool]:
        """Its registers at a breakpoint, or where it has stopped for good (True) or has not in time (False)."""
        gdb, end, last, alike = self.qemu.gdb, time.monotonic() + PURGATORY_SECONDS, None, 0
        while True:
            if gdb.wait_for_stop(_LOOK_SECONDS):
                registers = gdb.registers()
                # Else the machine was switched off, or reset.
                return (registers if registers.pc in doors else gdb.registers(self.cpu)), True
            gdb.interrupt()
            registers = gdb.registers(self.cpu)
            still = last is not None and registers.stands_as(last, _LOOP_BYTES) and registers.masked
            alike, last = (alike + 1 if still else 0), registers
            if alike >= _LOOKS - 1:
                return registers, True
            if time.monotonic() > end:
                return registers, False
            gdb.resume()

    # -- the capture kernel ------------------------------------------------------------------------------------------

    def _capture(self, entry: int, loads: MemoryHeld) -> tuple[CaptureRun, bool | None]:
        """From the kernel's entry to the last word of its init; and whether its dump is a true one."""
        gdb, qemu = self.qemu.gdb, self.qemu
        registers = gdb.registers()
        printed = len(qemu.console)
        gdb.resume()
        hit = qemu.wait_for((SAID, PANIC_END), LIMIT_SECONDS, printed)
        if hit is None:
            qemu.check_running()
        qemu.wait_for(("reboot: Power down",), 1, printed)
        said = qemu.console[printed:]
        linux = linux_end(said, panicked=hit == PANIC_END)
        kind = LINUX_ENDS[linux.end]
        dump = true_dump(self.disk, linux.last_word, loads) if kind is CaptureEnd.DONE else None
        return CaptureRun(kind, registers.pc or entry, 0, None, linux=linux), dump

"""A real Linux as the first kernel: it boots, its own kexec-tools loads a crash kernel, it is harmed, and crashes.

The board starts a real Image as QEMU's boot loader would, with the initramfs of linux/inits/first.sh. What that prints
marks the moments: there the machine is stopped, always at the same instruction, and faults are injected. What came of
what Linux does in between is read from the machine.
"""

import re
from collections.abc import Callable, Generator

from kexecemu.errors import InputError, MachineError, NothingReserved
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.load.syscalls import tell_image
from kexecemu.linux.first_boot import WAITING, ConsoleWatch, LinuxSetup, boot_linux, first_page_size
from kexecemu.linux.first_found import find_load
from kexecemu.linux.first_load import read_load
from kexecemu.linux.first_purgatory import FoundPurgatory, built_in_purgatory
from kexecemu.linux.first_records import (
    KexecSaid,
    believed,
    crash_kernel,
    iomem,
    last_words,
    parse_kexec,
    split_records,
)
from kexecemu.linux.first_store import GuestKernelMap, hang, store
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.cpu.system_cpu import SystemCpu
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.system import System, SystemEnd, SystemEndKind
from kexecemu.shown import shown
from kexecemu.stray.fault import By, Fault, Injection
from kexecemu.stray.first import Left, Progress
from kexecemu.stray.target import area_of, resolve_by
from kexecemu.suggest import did_you_mean, there_are

__all__ = ["FirstLinux"]

BUDGET = 20_000_000_000
_USUAL = 1_400_000_000
_OFF = "first: end: "
_PANIC_END = "---[ end Kernel panic"
_STOPPED = (_OFF, _PANIC_END)
_CRASHES = ("sysrq: Trigger a crash", "Unable to handle kernel", "Internal error: ")
_BYE = "] Bye!"
_KERNEL_PARTS = ("Kernel code", "Kernel data")
_BLOCKS = 100_000  # from "Bye!" to the purgatory's first instruction are some thousand instructions


@shown("setup", "crashk_res", "crashk_low_res", "board")
class FirstLinux:
    """One board with a real first kernel: FirstLinux(setup), load(), then kexecemu.crash.moments.crash()."""

    purgatory_budget: int = 0

    def __init__(self, setup: LinuxSetup, console: Callable[[bytes], object] | None = None) -> None:
        """Put everything into RAM as a boot loader does; console hears what is printed.

        Raises InputError when RAM is too small for it, and what first_kernel_initramfs() raises.
        """
        self.setup = setup
        self.board = Board(setup.ram, setup.cpus, gic=setup.gic)
        self.ram = self.board.ram
        self.system = System(self.board)
        self.marks = ConsoleWatch(self.system.request_stop)
        self.board.uart.listeners.append(self.marks)
        if console is not None:
            self.board.uart.listeners.append(console)
        self.injections: list[Injection] = []
        self.records: dict[str, str] = {}
        self.dtb = boot_linux(self.board, setup)
        self._loaded: tuple[Kimage, KexecSaid, GuestKernelMap] | None = None
        self.stands_at = 0
        """The number of the CPU that made the machine stop last."""
        self._stuck: list[int] = []
        self.crashk_res: PhysRange | None = None
        self.crashk_low_res: PhysRange | None = None

    # -- the load ------------------------------------------------------------------------------------------------

    def _of_load(self) -> tuple[Kimage, KexecSaid, GuestKernelMap]:
        if self._loaded is None:
            raise MachineError("the first Linux has loaded nothing yet")
        return self._loaded

    @property
    def image(self) -> Kimage:
        """What kexec-tools loaded; MachineError before load()."""
        return self._of_load()[0]

    @property
    def crashing_cpu(self) -> SystemCpu:
        """The CPU that made the machine stop last; none but the one that crashes leaves Linux."""
        return self.board.cpus[self.stands_at]

    @property
    def said(self) -> KexecSaid:
        """What kexec-tools said of it; MachineError before load()."""
        return self._of_load()[1]

    @property
    def kernel_map(self) -> GuestKernelMap:
        """Where Linux has its text and its linear map; MachineError before load()."""
        return self._of_load()[2]

    @property
    def page_size(self) -> int:
        """Of the first kernel, in bytes."""
        return first_page_size(self.setup.image)

    @property
    def kernel_area(self) -> PhysRange:
        """Where its image lies, as /proc/iomem says; empty where that says nothing."""
        areas = [area for _, area, name in iomem(self.records["iomem.txt"]) if name in _KERNEL_PARTS]
        return PhysRange(areas[0].start, areas[-1].end) if areas else PhysRange(0, 0)

    @property
    def protected(self) -> list[PhysRange]:
        """Nothing that anybody tells of: which pages it takes out of its linear map is its own affair."""
        return []

    @property
    def release(self) -> str:
        """What the first kernel calls itself; empty before it has said so."""
        found = re.search(r"^first: Linux (\S+) is up", self.board.uart.text, re.MULTILINE)
        return found[1] if found else ""

    def load(self, progress: Progress | None = None) -> Kimage:
        """Run until the crash kernel is loaded and init waits; returns what is loaded, checked against memory.

        The machine stands at the last byte that init sent. InputError with its last words if it does not get there,
        NothingReserved where that is for want of crash memory.
        """
        end = self.run_to((WAITING, *_STOPPED), progress)
        console = self.board.uart.text
        if self.marks.hit != WAITING:
            self.records = split_records(console)
            nothing = {"iomem.txt", "dmesg.txt"} <= self.records.keys() and not any(self._crash_kernel())
            kind = NothingReserved if nothing else InputError
            raise kind(f"the first Linux has loaded no crash kernel: {last_words(console)} ({end})")
        with believed():
            image = self._read_load(console)
        self.stands_at = end.cpu
        call = self.setup.syscall
        unchecked = "--no-checks: no digest" if call == "kexec_load" else "no purgatory and so no digest"
        tell_image(self.board.timeline, image, call, by=f"{call} by kexec-tools", unchecked=unchecked)
        return image

    def _crash_kernel(self) -> tuple[PhysRange | None, PhysRange | None]:
        return crash_kernel(self.records.get("iomem.txt", ""))

    def _read_load(self, console: str) -> Kimage:
        """What memory has of the load, and the records on the console say."""
        self.records = split_records(console)
        self.crashk_res, self.crashk_low_res = self._crash_kernel()
        if self.crashk_res is None:
            raise InputError("the first Linux has reserved no crashkernel memory")
        call, checks, built_in = self.setup.syscall, self.setup.checks, None
        if call == "kexec_load":
            said = parse_kexec(self.records.get("kexec.txt", ""))
        else:
            built_in = built_in_purgatory(self.setup.image)
            checks = built_in is not None
            said = find_load(self.ram, self.crashk_res, self.setup.crash_image, self.page_size, built_in)
        files = {"kernel": self.setup.crash_image, "initrd": self.setup.crash_initrd}
        image = read_load(
            self.ram, said, files, self.crashk_res, page_size=self.page_size, checks=checks, built_in=built_in
        )
        self._loaded = image, said, GuestKernelMap(said, self.records["iomem.txt"])
        return image

    def run_to(self, marks: tuple[str, ...], progress: Progress | None = None) -> SystemEnd:
        """Run until a line on the console has one of the marks in it, which is then marks.hit; else None, and the end.

        The stop is at the boundary that follows the line's last byte, the same one in every run.
        """
        self.marks.wanted, self.marks.hit = marks, None
        begin = self.board.time
        tell = None if progress is None else lambda time: progress(time - begin, max(time - begin, _USUAL))
        self.board.work.allow(begin, BUDGET)
        end = self.system.run(BUDGET, progress=tell)
        self.marks.wanted = ()
        if end.kind is not SystemEndKind.STOPPED:
            self.marks.hit = None
        return end

    # -- faults --------------------------------------------------------------------------------------------------

    def _area(self, base: str) -> PhysRange:
        assert self.crashk_res is not None
        found = area_of(self.crashk_res, self.image, base)
        if found is not None:
            return found
        if base.startswith("purgatory:"):
            return self._symbol(base, base.removeprefix("purgatory:"))
        known = [*(one.name for one in self.image.segments), "crashkernel", "crashkernel-free"]
        raise InputError(
            f"target {base}: no such segment{there_are(base, known)}, purgatory:SYMBOL and physical addresses"
        )

    def _symbol(self, base: str, name: str) -> PhysRange:
        """Of kexec-tools' purgatory what that happened to name; of one that the kernel has, all are known."""
        if isinstance(self.image.purgatory, FoundPurgatory):
            return self.image.purgatory.target(base)
        symbols = self.said.symbols
        if name in symbols:
            return symbols[name]
        like = did_you_mean(name, sorted(symbols))
        raise InputError(
            f"target {base}: kexec -d named no symbol {name}{like}; it named {', '.join(sorted(symbols))}"
        )

    def place(self, fault: Fault) -> PhysRange:
        """The physical bytes that a fault writes; InputError for a target that is not there."""
        return resolve_by(self.ram, self._area, fault)

    def store(self, phys: int, data: bytes, width: int, *, by: By) -> GuestException | None:
        """Stores that a stopped CPU executes in the linear map; the exception that ended them.

        That one is Linux's to handle: it oopses, and the crash begins there. Of a late CPU it ends the stores, and
        nothing of a handler runs, as in the model. Raises InputError where there is no such CPU, or where it is not in
        kernel mode.
        """
        cpu, handled = self.board.cpus[self.storing(by)], by is not By.LATE_CPU
        return store(cpu, self.kernel_map, phys, data, width, handled=handled)

    def storing(self, by: By) -> int:
        """Target.storing(): the CPU that stands at the moment, and for a late one the first of those that are stuck."""
        if by is By.ALIAS:
            why = "a real first kernel has no other mapping of the page"
            raise InputError(f"an alias store needs the model: {why}")
        if by is not By.LATE_CPU:
            return self.stands_at
        if not self.setup.stuck_cpus:
            raise InputError("a late-cpu is one that does not stop: name it in machine.stuck_cpus")
        if not self._stuck:
            crashing = f"cpu{self.setup.stuck_cpus[0]}"
            raise InputError(f"no store by late-cpu: {crashing} crashes, name another in machine.stuck_cpus")
        return self._stuck[0]

    @property
    def dying(self) -> bool:
        """A store has met an exception, which Linux has yet to handle."""
        return any(one.exception is not None and one.fault.by is not By.LATE_CPU for one in self.injections)

    # -- the crash -----------------------------------------------------------------------------------------------

    def leave(self, message: str) -> Generator[None, None, Left]:
        """FirstKernel.leave(): a line is typed that init waits for, so that it crashes by sysrq; up to the jump.

        Where a store has met an exception the crash has begun already. It stops in the panic at the last line that the
        crash path prints, right before Linux is left.
        """
        say = self.board.timeline.record
        if self.dying:
            say("panic", "the store's exception is Linux's to handle: an oops", message="")
        else:
            say("panic", "a line is typed, and init crashes Linux by sysrq", message=message)
            self.board.uart.feed(b"\n")
        end = self._to_the_last_line()
        self.stands_at = end.cpu
        if self.marks.hit is None or _BYE not in self.marks.hit:
            trapped = end.kind is SystemEndKind.FAULT
            return Left(self.board.cpus[end.cpu], end.stop, out=False, trapped=trapped)
        yield
        cpu = self._arrival()
        if cpu is None:
            return Left(self.board.cpus[end.cpu], end.stop, out=False)
        cpu.leave_system()
        say("jump", f"cpu{cpu.index} has left the first kernel for {cpu.pc:#x}, MMU off", pc_phys=cpu.pc)
        return Left(cpu, CpuStop(CpuStopKind.LEFT, cpu.pc, 0), out=True)

    def resume(self) -> CpuStop:
        """No purgatory of kexec-tools' goes back to where it came from, and none of a kernel's is asked to."""
        raise MachineError("the purgatory has returned to the first kernel")

    def _to_the_last_line(self) -> SystemEnd:
        """To the last line of the first kernel, which its crash path prints right before it is left."""
        last = (_BYE, _PANIC_END, _OFF)
        if self.setup.stuck_cpus:
            end = self.run_to((*_CRASHES, *last))
            if self.marks.hit is None or not any(mark in self.marks.hit for mark in _CRASHES):
                return end
            self._cut_off(end.cpu)
        return self.run_to(last)

    def _cut_off(self, crashing: int) -> None:
        """The CPUs that are to be stuck get into an endless loop with interrupts masked, or at least hear none."""
        for index in self.setup.stuck_cpus:
            if index == crashing:
                text = f"cpu{index} is the one that crashes: it is not stuck"
            else:
                # One that runs a program has no such loop at hand: it goes on until it waits for an interrupt.
                self.board.gic.disable_cpu_interface(index)
                hung = hang(self.board.cpus[index], self.kernel_map)
                loop, deaf = "is in an endless loop with interrupts masked", "hears no interrupt any more"
                text = f"cpu{index} {loop if hung else deaf}"
                self._stuck.append(index)
            self.board.timeline.record("stuck", text, cpu=index)

    def _arrival(self) -> SystemCpu | None:
        """The CPU that stands at its first instruction in the crash region, found block by block; None if none does."""
        region = self.crashk_res
        assert region is not None
        for _ in range(_BLOCKS):
            for cpu in self.board.cpus:
                if cpu.powered and cpu.pc in region:
                    return cpu
            if self.system.run(1).kind is not SystemEndKind.BUDGET:
                return None
        return None

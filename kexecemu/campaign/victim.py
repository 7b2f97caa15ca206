"""The machine of a campaign: put back to where it was, written to, and run to its end, again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kexecemu.campaign.fault import Ended, Moment, Writer
from kexecemu.campaign.golden import ended
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import Interlude
from kexecemu.errors import BusError, MachineError
from kexecemu.kernel.kimage import Kimage
from kexecemu.machine.cpu import Stop, StopKind
from kexecemu.machine.exceptions import GuestFault
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import Snapshot, Snapshots
from kexecemu.scenario.setup import Setup, prepare
from kexecemu.shown import shown
from kexecemu.stray.fault import By, Fault, Injection

if TYPE_CHECKING:
    from kexecemu.campaign.golden import Golden

__all__ = ["Victim", "Write"]

_REFUSED = (
    0x25 << 26 | 1 << 25 | 1 << 6 | 7
)  # ESR_EL1: data abort at EL1, write, translation fault at level 3

_STEPS = 256
"""Of hashing, see Moment.WHILE_HASHING."""


@shown()
@dataclass(frozen=True)
class Write:
    """What is written over a physical area, by whom and when: data(bytes that are there then) is what a model makes of
    them, as the same number of bytes."""

    by: Writer
    area: PhysRange
    data: Callable[[bytes], bytes]
    moment: Moment
    at: int = 0

    @property
    def step(self) -> tuple[Moment, int]:
        """When."""
        return self.moment, self.at


@shown("kernel", "golden")
class Victim:
    """A loaded kernel with its snapshots. golden is set once there is one."""

    def __init__(self, kernel: Kernel, image: Kimage, setup: Setup) -> None:
        self.kernel = kernel
        self._setup = setup
        self._unloaded: bytes | None = None
        self.image = image
        self.snapshots = Snapshots(kernel.board)
        self.golden: Golden | None = None
        self.page_tables = self._page_tables()
        self._allowed: dict[int, bool] = {}
        self._stale_code = False
        self._checkpoints: dict[int, Snapshot] = {}
        self._reached: dict[tuple[Moment, int], bool] = {}

    def _page_tables(self) -> PhysRange | None:
        """Where the purgatory builds page tables: the only memory of its that it writes whole before it reads any."""
        checker = self.image.purgatory
        symbol = checker.symbol_table().get("table_area") if checker is not None else None
        if symbol is None or checker is None:
            return None
        return PhysRange(symbol[0], checker.segment.area.end)

    def base_memory(self, area: PhysRange) -> bytes:
        """What memory holds right after the load."""
        assert self.golden is not None
        self._restore(self.golden.loaded)
        return self.kernel.ram.read(area.start, area.size)

    def unloaded_memory(self, area: PhysRange) -> bytes:
        """What memory holds there before the load."""
        region = self.kernel.crashk_res
        assert region is not None
        kept = region if region.covers(area) else area
        if self._unloaded is None or kept is not region:
            held: list[bytes] = []
            kernel, _ = prepare(
                self._setup, between=lambda kernel: held.append(kernel.ram.read(kept.start, kept.size))
            )
            kernel.board.close()
            if kept is not region:
                return held[0]
            self._unloaded = held[0]
        return self._unloaded[area.start - region.start : area.end - region.start]

    def store_allowed(self, page: int) -> bool:
        """The page tables of the loaded kernel let a store through the linear map into this page (its number)."""
        allowed = self._allowed.get(page)
        if allowed is None:
            assert self.golden is not None
            self._restore(self.golden.loaded)
            walk = self.kernel.board.boot_cpu.walk(self.kernel.space.linear_virt(page << 12))
            # AP[2] of the leaf and APTable[1] of the tables above it make a mapping read-only.
            allowed = self._allowed[page] = (
                walk is not None
                and walk.phys is not None
                and not walk.descriptor >> 7 & 1
                and not any(descriptor >> 62 & 1 for _, _, descriptor in walk.steps[:-1])
            )
        return allowed

    def stores_allowed(self, area: PhysRange) -> list[bool]:
        """store_allowed() of each page of an area."""
        return [self.store_allowed(page) for page in range(area.start >> 12, (area.last >> 12) + 1)]

    def reached(self, moment: Moment, at: int) -> bool:
        """The undisturbed run comes to that moment: it may be over before so many instructions."""
        golden = self.golden
        assert golden is not None
        if moment not in (Moment.WHILE_HASHING, Moment.IN_CAPTURE):
            return True
        if (moment, at) not in self._reached:
            if moment is Moment.WHILE_HASHING:
                stop = self._run_to_step(at)
            else:
                segment = self.image.segment("kernel")
                assert segment is not None
                self._restore(golden.entry)
                within = range(segment.area.start, segment.area.end)
                stop = self.kernel.board.boot_cpu.run(within=within, limit=at)
            self._reached[moment, at] = stop.kind is StopKind.DEADLINE
        return self._reached[moment, at]

    def _run_to_step(self, step: int) -> Stop:
        """Run the purgatory from the jump on to where it has done so many 256ths, or to its end before that."""
        checker = self.image.purgatory
        assert self.golden is not None and checker is not None
        self._restore(self.golden.jump)
        area = checker.segment.area
        return self.kernel.board.boot_cpu.run(
            within=range(area.start, area.end), limit=self.instructions_at(step), deliver=False
        )

    def instructions_at(self, step: int) -> int:
        """Instructions of the purgatory's undisturbed run after so many 256ths of it."""
        golden = self.golden
        if golden is None or golden.purgatory is None:
            raise MachineError("no purgatory hashes anything here")
        return golden.purgatory.instructions * step // _STEPS

    def run(self, write: Write, *, late: bool) -> Ended:
        """Make the write happen and follow the machine to its end.

        late begins where the write cannot have mattered yet, at the jump or at the capture kernel's entry; without it
        everything since the load is run, with the store really executed where a CPU makes it.
        """
        golden = self.golden
        assert golden is not None
        try:
            return self._run(write, golden, late)
        finally:
            # Code may be other code than what was translated: by the write, or by what it led to.
            self._stale_code = True

    def _run(self, write: Write, golden: Golden, late: bool) -> Ended:
        if write.moment is Moment.DURING_LOAD:
            return self._run_load(write)
        kernel = self.kernel
        # Asked while the first kernel's tables are in use.
        allowed = write.by not in (Writer.CPU, Writer.LATE_CPU) or all(self.stores_allowed(write.area))
        reached = self.reached(*write.step)
        early = write.moment is Moment.AFTER_LOAD
        if late and write.moment in (Moment.AFTER_CHECK, Moment.IN_CAPTURE):
            return self._run_capture(write, golden, reached)
        # What the page tables refuse in part only the real store knows.
        from_load = not late or (early and not (allowed and self.at_rest(write.area)))
        checkpoint = None
        if late and write.moment is Moment.WHILE_HASHING and write.at and reached:
            checkpoint = self._checkpoint(write.at)
        self._restore(checkpoint or (golden.loaded if from_load else golden.jump))
        kernel.forget_faults()
        if from_load and early:
            self._store_after_load(write)
        stop = kernel.crash() if from_load else golden.jump_stop
        # What the first kernel's memory holds at the jump is what a dump has to show, a stray write among it.
        before_jump = early or write.moment is Moment.DURING_PANIC
        if before_jump and not (early and from_load):
            self._put(write)
        checking: Interlude | None = None
        capturing: Interlude | None = None
        if not reached:
            pass
        elif checkpoint is not None:
            self._put(write)
        elif write.moment is Moment.WHILE_HASHING:
            checking = (self.instructions_at(write.at), lambda: self._put(write))
        elif write.moment is Moment.AFTER_CHECK:
            kernel.after_check.append(lambda: self._put(write))
        elif write.moment is Moment.IN_CAPTURE:
            capturing = (write.at, lambda: self._put(write))
        end = kernel.follow(
            stop,
            while_checking=checking,
            in_capture=capturing,
            back_phys=golden.back_phys,
            resumed=checkpoint is not None,
            crashed=None
            if from_load or (before_jump and not golden.region.covers(write.area))
            else golden.crashed,
        )
        return ended(end)

    def _run_load(self, write: Write) -> Ended:
        """A write before the load, on a machine of its own: no snapshot is that old."""
        area = write.area
        before = self.unloaded_memory(area)

        def happen(kernel: Kernel) -> None:
            if write.by is Writer.CPU:
                kernel.stray_write_virt(kernel.space.linear_virt(area.start), write.data(before))
            else:
                kernel.ram.write(area.start, write.data(before))

        kernel, _ = prepare(self._setup, between=happen)
        try:
            # The load writes over some of it, or all.
            kept = kernel.ram.read(area.start, area.size) != self.base_memory(area)
            found = ended(kernel.panic())
            if found.outcome != Outcome.CAPTURED:
                return found
            return replace(found, outcome=(Outcome.LATENT if kept else Outcome.MASKED).value)
        finally:
            kernel.board.close()

    def _run_capture(self, write: Write, golden: Golden, reached: bool) -> Ended:
        """A write that cannot matter before the capture kernel's entry: from there."""
        self._restore(golden.entry)
        self.kernel.forget_faults()
        capturing: Interlude | None = None
        if write.moment is Moment.AFTER_CHECK:
            self.kernel.after_check.append(lambda: self._put(write))
        elif reached:
            capturing = (write.at, lambda: self._put(write))
        return ended(
            self.kernel.boot_capture(
                self.image, golden.purgatory, crashed=golden.crashed, in_capture=capturing
            )
        )

    def _checkpoint(self, step: int) -> Snapshot:
        """The machine in the middle of hashing, kept for the next fault at the same step."""
        if step not in self._checkpoints:
            self._run_to_step(step)
            self._checkpoints[step] = self.snapshots.take()
        return self._checkpoints[step]

    def at_rest(self, area: PhysRange) -> bool:
        """The crash path does not come near an area of the crash region."""
        golden = self.golden
        assert golden is not None
        # The model writes into the crash path's own pages there from outside of the machine, which no hook sees.
        own = any(page.overlaps(area) for page in self.image.control_pages)
        return golden.region.covers(area) and golden.in_panic.untouched(area) and not own

    def _restore(self, snapshot: Snapshot) -> None:
        self.snapshots.restore(snapshot)
        if self._stale_code:
            self.kernel.board.boot_cpu.flush_code()
            self._stale_code = False

    def _store_after_load(self, write: Write) -> None:
        """A write while the first kernel still runs."""
        if write.by is not Writer.CPU:
            self._put(write)
            return
        width = next(
            width for width in (8, 4, 2, 1) if not write.area.start % width and not write.area.size % width
        )
        data = write.data(self.kernel.ram.read(write.area.start, write.area.size))
        self.kernel.inject(Fault(f"{write.area.start:#x}", write=data, by=By.CPU, width=width))

    def _put(self, write: Write) -> None:
        """The bytes get into memory past the running CPU's MMU; a CPU that writes asks the first kernel's tables."""
        kernel, area = self.kernel, write.area
        exception = None
        before = kernel.ram.read(area.start, area.size)
        wanted = data = write.data(before)
        if write.by in (Writer.CPU, Writer.LATE_CPU):
            # Its stores go in address order, byte for byte, until one is refused.
            room = self._writable_part(area)
            if room < area.size:
                data = data[:room] + before[room:]
                exception = self._refusal(write.by, area.start + room)
        try:
            kernel.ram.write(area.start, data)
        except BusError as error:
            raise MachineError(f"no RAM at {area}") from error
        fault = Fault(f"{area.start:#x}", write=wanted, by=By.DMA)
        kernel.note_injection(Injection(fault, area.start, before, data, exception))

    def _writable_part(self, area: PhysRange) -> int:
        """Bytes from an area's start up to the first page that the linear map does not let a store into."""
        for page in range(area.start >> 12, (area.last >> 12) + 1):
            if not self._allowed[page]:
                return max(0, (page << 12) - area.start)
        return area.size

    def _refusal(self, by: Writer, phys: int) -> GuestFault:
        """The data abort of the CPU that panics or one that did not stop: a translation fault at level 3, a write."""
        virt = self.kernel.space.linear_virt(phys)
        return GuestFault(int(by is Writer.LATE_CPU), self.kernel.board.time, "sync", _REFUSED, virt, 0, 1, 0)

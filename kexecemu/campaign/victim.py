"""The machine of a campaign: put back to where it was, written to, and run to its end, again and again."""

from dataclasses import replace
from functools import cache, cached_property

from kexecemu.campaign.fault import Ended
from kexecemu.campaign.golden import ended, golden_run
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.moments import Act, At, Passed, crash, follow
from kexecemu.crash.running import PARTS, capture_stage, purgatory_stage
from kexecemu.errors import BusError, InputError, MachineError
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import Snapshot, Snapshots
from kexecemu.scenario.setup import Setup, boot, settle
from kexecemu.shown import shown
from kexecemu.stray.fault import NUMBERED, By, Fault, When
from kexecemu.stray.inject import inject

__all__ = ["Victim"]

_ADDRESS = (1 << 48) - (1 << 12)
"""Of a descriptor: where it leads, whatever the size of what lies there."""


@shown("kernel", "golden")
class Victim:
    """A loaded kernel with its snapshots and its undisturbed run. MachineError where that is none, see golden_run()."""

    def __init__(self, kernel: Kernel, image: Kimage, setup: Setup) -> None:
        self.kernel, self.image, self._setup = kernel, image, setup
        self.snapshots = Snapshots(kernel.board)
        self.golden = golden_run(kernel, image, self.snapshots)
        self.end: End | None = None
        """Of the last run."""
        self.page_tables = self._page_tables()
        self._kinds: dict[tuple[tuple[int, int], ...], bool] = {}
        self._stale_code = False
        # Nothing that these say depends on a fault.
        self.store_allowed = cache(self._store_allowed)
        self.reached = cache(self._reaches)
        self._checkpoint = cache(self._take_checkpoint)

    def _page_tables(self) -> PhysRange | None:
        """Where the purgatory builds page tables: the only memory of its that it writes whole before it reads any."""
        checker = self.image.purgatory
        symbol = checker.symbol_table().get("table_area") if checker is not None else None
        if symbol is None or checker is None:
            return None
        return PhysRange(symbol[0], checker.segment.area.end)

    def base_memory(self, area: PhysRange) -> bytes:
        """What memory holds right after the load."""
        self._restore(self.golden.loaded)
        return self.kernel.ram.read(area.start, area.size)

    def unloaded_memory(self, area: PhysRange) -> bytes:
        """What memory holds there before the load."""
        region = self.golden.region
        if not region.covers(area):
            return self._read_unloaded(area)
        return self._unloaded_region[area.start - region.start : area.end - region.start]

    @cached_property
    def _unloaded_region(self) -> bytes:
        return self._read_unloaded(self.golden.region)

    def _read_unloaded(self, area: PhysRange) -> bytes:
        kernel = boot(self._setup).kernel
        try:
            return kernel.ram.read(area.start, area.size)
        finally:
            kernel.board.close()

    def _store_allowed(self, page: int) -> bool:
        """A CPU's store through the linear map goes through into this page (its number).

        One is executed for each kind of mapping that the loaded kernel has; all stores to pages of that kind end as it
        does, of which audits run a sample.
        """
        self._restore(self.golden.loaded)
        phys = page << 12
        walk = self.kernel.board.boot_cpu.walk(self.kernel.space.linear_virt(phys))
        steps = walk.steps if walk is not None and walk.phys is not None else []
        kind = tuple((level, descriptor & ~_ADDRESS) for level, _, descriptor in steps)
        if kind not in self._kinds:
            fault = self.kernel.store(phys, self.kernel.ram.read(phys, 1), by=By.CPU)
            self._kinds[kind] = fault is None
            self._stale_code = True
        return self._kinds[kind]

    def stores_allowed(self, area: PhysRange) -> list[bool]:
        """store_allowed() of each page of an area."""
        return [self.store_allowed(page) for page in range(area.start >> 12, (area.last >> 12) + 1)]

    def _reaches(self, moment: When, at: int) -> bool:
        """The undisturbed run comes to that moment: it may be over before so many instructions."""
        golden, board = self.golden, self.kernel.board
        if moment not in NUMBERED:
            return True
        if moment is When.IN_CAPTURE:
            self._restore(golden.entry)
            return next(capture_stage(board.boot_cpu, board, self.image, steps=(at,)), None) is not None
        self._restore(golden.jump)
        total = self.instructions_at(PARTS)
        stage = purgatory_stage(
            board.boot_cpu, self.image, back_phys=golden.passed.back_phys, steps=(at,), total=total
        )
        return next(stage, None) is not None

    def instructions_at(self, step: int) -> int:
        """Instructions of the purgatory's undisturbed run after so many 256ths of it; InputError without one."""
        if self.golden.purgatory is None:
            raise InputError("no fault has the moment hashing here: nothing is hashed without a purgatory")
        return self.golden.purgatory.instructions * step // PARTS

    def run(self, fault: Fault, area: PhysRange, *, late: bool) -> Ended:
        """Make the write happen and follow the machine to its end.

        late begins where the write cannot have mattered yet, at the jump or at the capture kernel's entry, and takes a
        CPU's store for granted where one to the same page went through; without it everything since the load is run,
        every store really executed.
        """
        try:
            self.end = self._run(fault, area, late)
            return ended(self.end)
        finally:
            # Code may be other code than what was translated: by the write, or by what it led to.
            self._stale_code = True

    def _run(self, fault: Fault, area: PhysRange, late: bool) -> End:
        if fault.when is When.DURING_LOAD:
            return self._run_load(fault, area)
        # Asked while the first kernel's tables are in use; what they refuse only the real store knows.
        granted = late and (fault.by in (By.DMA, By.ALIAS) or all(self.stores_allowed(area)))
        reached = self.reached(*fault.moment)
        begin, passed = self._begin(fault, area, granted, reached)
        self._restore(begin)

        def act() -> object:
            return inject(_Granted(self.kernel) if granted else self.kernel, fault, area)

        acts: dict[At, list[Act]] = {fault.moment: [act]} if reached else {}
        behind = fault.when in (When.AFTER_LOAD, When.DURING_PANIC)
        if passed.left is not None and (behind or fault.moment == (When.WHILE_HASHING, passed.step)):
            act()  # the machine stands at the moment, or behind it where that makes no difference
            acts = {}
        return follow(crash(self.kernel, wanted=acts, passed=passed), acts)

    def _begin(self, fault: Fault, area: PhysRange, granted: bool, reached: bool) -> tuple[Snapshot, Passed]:
        """From where on a fault is run, and what is behind the crash there."""
        golden, when = self.golden, fault.when
        early = when is When.AFTER_LOAD
        # By a map that the load has made the jump itself is fetched.
        mapped = when is When.DURING_PANIC and any(page.overlaps(area) for page in self.image.table_pages)
        if not granted or mapped or (early and not self.at_rest(area)):
            return golden.loaded, Passed(hashing=golden.passed.hashing)
        if when in (When.AFTER_CHECK, When.IN_CAPTURE):
            return golden.entry, replace(golden.passed)
        if when is When.WHILE_HASHING and fault.step and reached:
            return self._checkpoint(fault.step), golden.while_hashing(fault.step)
        # What the first kernel's memory holds at the jump is what a dump has to show, a stray write among it.
        before_jump = early or when is When.DURING_PANIC
        return golden.jump, golden.at_jump(crashed=not before_jump or golden.region.covers(area))

    def _run_load(self, fault: Fault, area: PhysRange) -> End:
        """A write before the load, on a machine of its own: no snapshot is that old."""
        loading = boot(self._setup)
        inject(loading.kernel, fault, area)
        kernel, _ = loading.load()
        try:
            settle(kernel, self.base_memory)
            return kernel.panic()
        finally:
            kernel.board.close()

    def _take_checkpoint(self, step: int) -> Snapshot:
        """The machine in the middle of hashing."""
        self._reaches(When.WHILE_HASHING, step)
        return self.snapshots.take()

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


class _Granted:
    """A first kernel whose CPUs' stores go through: one to each page that is hit has been executed, and did."""

    def __init__(self, kernel: Kernel) -> None:
        self.board, self.injections, self.dying = kernel.board, kernel.injections, False
        self.place, self.storing = kernel.place, kernel.storing

    def store(self, phys: int, data: bytes, width: int, *, by: By) -> GuestException | None:
        """What such a store leaves in memory."""
        try:
            self.board.ram.write(phys, data)
        except BusError as error:
            raise MachineError(f"no RAM at {phys:#x}") from error
        return None

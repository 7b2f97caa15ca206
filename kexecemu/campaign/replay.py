"""One fault of a campaign once more, in full emulation, with as much to look at as one wants.

The checksum says that something was stamped on, not by whom. Here everything happens again exactly as it did, so the
store can be caught in the act: with a hook on the bytes that came to harm.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

import capstone  # type: ignore[import-untyped]
from unicorn.arm64_const import UC_ARM64_REG_PC
from unicorn.unicorn_const import UC_HOOK_BLOCK, UC_HOOK_MEM_WRITE
from unicorn.unicorn_py3.unicorn import Uc

from kexecemu.campaign.engine import FaultDecider
from kexecemu.campaign.fault import CampaignFault, Decided
from kexecemu.campaign.source_lines import SymbolMap, source_line
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.timeline import Event
from kexecemu.shown import shown
from kexecemu.stray.fault import By, When

__all__ = ["Culprit", "Replay", "replay_in"]

_LINES: Final = 400
"""Of a trace, at its beginning and at its end."""
_LAST_BLOCKS: Final = 8
"""Blocks at the end of a trace that are shown instruction by instruction."""

_WIDEST: Final = 64
"""Bytes: no store is as wide."""

_UNTRACED: Final = "nobody is traced: a write before the load has a machine of its own, which nothing watches"


@shown()
@dataclass(frozen=True)
class Culprit:
    """A store that hit the damaged bytes.

    who is a CPU or a bus master; pc_virt, instruction, symbol and source say which instruction, empty for a bus master
    and for a store before the load. when is in instructions of the machine, phys the address of the store.
    """

    who: str
    when: int
    phys: int
    pc_virt: int = 0
    instruction: str = ""
    symbol: str = ""
    source: str = ""

    def __str__(self) -> str:
        if not self.instruction and self.who.startswith("cpu"):
            return f"{self.who} stored at {self.phys:#x} before the load, where no instruction is watched"
        if not self.instruction:
            return f"{self.who} wrote at {self.phys:#x}, past every CPU: no instruction did"
        where = f"{self.symbol} ({self.source})" if self.source else self.symbol
        return f"{self.who} stored at {self.phys:#x} by `{self.instruction}` at {self.pc_virt:#x}, {where}"


@shown()
@dataclass(frozen=True)
class Replay:
    """A fault run again. concluded is what a campaign makes of it; outcome, dump and dump_reason what is found now.

    trace is a list of lines: who ran from when on, and the last instructions. culprits are who stored to the bytes.
    """

    fault: CampaignFault
    concluded: Decided
    outcome: str
    console: str
    events: list[Event]
    trace: list[str] = field(default_factory=list)
    culprits: list[Culprit] = field(default_factory=list)
    dump: str = ""
    dump_reason: str = ""

    @property
    def agrees(self) -> bool:
        """The campaign's conclusion holds, of the outcome and of the dump."""
        return (self.outcome, self.dump) == (self.concluded.outcome, self.concluded.dump)


def replay_in(engine: FaultDecider, fault: CampaignFault, *, trace: bool, culprit: bool) -> Replay:
    """Run one fault again, with what is asked for to look at."""
    concluded = engine.decide(fault)
    area = engine.area(fault)
    seen = _Trace(engine)
    caught = _Culprits(engine, fault, area)
    with ExitStack() as hooks:
        if trace:
            hooks.enter_context(seen.recording())
        if culprit:
            hooks.enter_context(caught.watching())
        run = engine.run(fault)
        end = engine.victim.end
        assert end is not None
        # Before anything puts the machine back.
        console, events = end.console, list(end.timeline)
    lines = [_UNTRACED] if fault.moment is When.DURING_LOAD else seen.lines()
    found = lines if trace else [], caught.found(events) if culprit else []
    return Replay(fault, concluded, run.outcome, console, events, *found, run.dump, run.dump_reason)


@contextmanager
def hooked(
    cpu: Cpu, kind: int, callback: Callable[..., None], area: PhysRange | None = None
) -> Iterator[None]:
    """Call back at each event of a kind (UC_HOOK_*) of a CPU, within a physical area if one is given."""
    hook = cpu.uc.hook_add(kind, callback, **({"begin": area.start, "end": area.last} if area else {}))
    cpu.flush_code()  # code that is translated already asks no hook
    try:
        yield
    finally:
        cpu.uc.hook_del(hook)
        cpu.flush_code()


class _Names:
    """Names for program counters of the whole machine: virtual ones of the first kernel, and what runs at physical."""

    def __init__(self, engine: FaultDecider) -> None:
        self._vmlinux, self._area = engine.kernel.guest.vmlinux, engine.kernel.guest.area
        symbols = self._vmlinux.elf.symbols.items()
        self._virtual = SymbolMap((virt, 0, name) for name, virt in symbols if not name.startswith("$"))
        checker, segments = engine.image.purgatory, engine.image.segments
        table = checker.symbol_table() if checker is not None else {}
        physical = [(phys, size, f"purgatory:{name}") for name, (phys, size) in table.items()]
        physical += [(one.mem, one.memsz, one.name) for one in segments if one.name != "purgatory"]
        self._physical = SymbolMap(physical)

    def _virt(self, pc: int) -> int:
        """The virtual address of the first kernel's code, with its MMU off as well; 0 for anybody else's."""
        if pc >> 63:
            return pc
        return self._vmlinux.virt("_text") + pc - self._area.start if pc in self._area else 0

    @functools.cache  # noqa: B019 (as long as the trace)
    def name(self, pc: int) -> str:
        """symbol+offset, or the bare address."""
        virt = self._virt(pc)
        return (self._virtual.name(virt) if virt else self._physical.name(pc)) or f"{pc:#x}"

    def function(self, pc: int) -> str:
        """The symbol alone."""
        return self.name(pc).partition("+")[0]

    def source(self, pc: int) -> str:
        """file:line of the first kernel's code, "" of anything else."""
        virt = self._virt(pc)
        return source_line(self._vmlinux.path, virt) if virt else ""


class _Trace:
    """Who ran, from when on: one entry for each change of function, the middle left out where it gets long."""

    def __init__(self, engine: FaultDecider) -> None:
        self._cpu = engine.kernel.board.boot_cpu
        self._ram = engine.kernel.ram
        self._names = _Names(engine)
        self._first: list[tuple[int, str, int]] = []
        self._last: deque[tuple[int, str, int]] = deque(maxlen=_LINES)
        self._dropped = 0
        self._blocks: deque[tuple[int, int]] = deque(maxlen=_LAST_BLOCKS)
        self._now = ""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hook every block of the boot CPU."""
        counter = self._cpu.counter

        def on_block(uc: Uc, virt: int, size: int, _: object) -> None:
            self._blocks.append((virt, size))
            function = self._names.function(virt)
            if function != self._now:
                self._now = function
                entry = (counter.total, function, virt)
                if len(self._first) < _LINES:
                    self._first.append(entry)
                    return
                self._dropped += len(self._last) == _LINES
                self._last.append(entry)

        with hooked(self._cpu, UC_HOOK_BLOCK, on_block):
            yield

    def lines(self) -> list[str]:
        """The trace as text: instructions, function, address; then the last blocks."""
        lines = [f"{when:14,}  {name:<40} {pc:#x}" for when, name, pc in self._first]
        if self._dropped:
            lines.append(f"{'':14}  ... {self._dropped:,} changes of function are left out ...")
        lines += [f"{when:14,}  {name:<40} {pc:#x}" for when, name, pc in self._last]
        disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        lines.append("the last instructions:")
        for virt, size in self._blocks:
            phys = self._cpu.translate(virt)
            code = self._ram.read(phys, size) if phys is not None and phys in self._ram else b""
            lines += [
                f"  {one.address:#x}  {self._names.name(one.address):<40} {one.mnemonic} {one.op_str}"
                for one in disassembler.disasm(code, virt)
            ]
        return lines


class _Culprits:
    """Who stores to an area of physical memory."""

    def __init__(self, engine: FaultDecider, fault: CampaignFault, area: PhysRange) -> None:
        self._engine = engine
        self._fault = fault
        self._area = area
        self._found: list[Culprit] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hook the stores of every CPU to the area, and nothing else: the rest runs as ever."""
        with ExitStack() as stack:
            # A store is heard where it begins: it may reach in from before.
            begins = PhysRange(max(self._area.start - _WIDEST, 0), self._area.end)
            # Whether they are off now says nothing: the run before this one may have ended so.
            for index, state in enumerate(self._engine.golden.loaded.cpus):
                if state is not None:
                    cpu = self._engine.kernel.board.cpus[index]
                    stack.enter_context(hooked(cpu, UC_HOOK_MEM_WRITE, self._on_write(cpu), begins))
            yield

    def _on_write(self, cpu: Cpu) -> Callable[..., None]:
        board, names = self._engine.kernel.board, _Names(self._engine)
        disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)

        def on_write(uc: Uc, kind: int, phys: int, size: int, value: int, _: object) -> None:
            if not PhysRange.of(phys, size).overlaps(self._area):
                return
            pc = int(uc.reg_read(UC_ARM64_REG_PC))
            code = cpu.translate(pc)
            word = cpu.ram.read(code, 4) if code is not None and code in cpu.ram else b""
            text = " ".join(f"{one.mnemonic} {one.op_str}" for one in disassembler.disasm(word, pc))
            where = names.name(pc), names.source(pc)
            self._found.append(Culprit(f"cpu{cpu.index}", board.time, phys, pc, text, *where))

        return on_write

    def found(self, events: list[Event]) -> list[Culprit]:
        """Every store, in order of time; writes that no hook sees come from the account of the fault.

        Those are past the CPUs, and before the load on a machine of its own.
        """
        found = list(self._found)
        dma = self._fault.by is By.DMA
        if dma or self._fault.moment is When.DURING_LOAD:
            found += [
                Culprit("a bus master" if dma else f"cpu{one.facts['cpu']}", one.when, self._area.start)
                for one in events
                if one.kind == "fault"
            ]
        return sorted(found, key=lambda one: one.when)

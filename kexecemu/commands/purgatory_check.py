"""kexecemu purgatory check: a fixed set of faults, one at a time, against one purgatory or several side by side."""

from __future__ import annotations

import json as json_module
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from kexecemu.commands.purgatory_require import unmet
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.purgatory_check import RUNS, Case, Reply, cases, judge_reply
from kexecemu.crash.stages import PurgatoryEnd, run_purgatory
from kexecemu.data import fixture_path
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.kernel.config import KernelConfig
from kexecemu.kernel.kimage import Kimage
from kexecemu.kernel.purgatory import LoadedPurgatory
from kexecemu.machine.access import AccessChecker, Violation
from kexecemu.machine.board import Board
from kexecemu.shown import shown
from kexecemu.stray.fault import Fault

__all__ = ["Check", "check_purgatory", "print_checks", "progress_of"]

_INITRD = 0x4000
_LARGER_INITRD = 0x24000
_CMDLINE = "crashkernel=64M rodata=off"  # blocks in the linear map: the machine is up sooner
_APPEND = "console=ttyAMA0 nr_cpus=1"
_ABSENT = "-"
_NO_OPTIONS: Mapping[str, str] = {}
_SCALAR: Mapping[str, str] = {"KEXEC_PURGATORY_CRYPTO": "n"}

Progress = Callable[[], None]


@shown()
@dataclass(frozen=True)
class Check:
    """Everything that was found out about one purgatory. Sizes in bytes, addresses physical.

    replies has one Reply for each run of each case; violations are what silicon would refuse, in good runs and in
    those that find damage, each with its place as SYMBOL+OFFSET. scalar_per_byte is None where the purgatory cannot be
    told to do without the SHA-2 instructions. absent says why of a row that has no replies.
    """

    name: str
    interface: str
    replies: dict[str, list[Reply]]
    instructions_per_byte: float | None
    scalar_per_byte: float | None
    violations: list[tuple[str, Violation]]
    bufsz: int
    memsz: int
    absent: Mapping[str, str] = field(default_factory=dict)

    def as_object(self) -> dict[str, Any]:
        """For --json."""
        return {
            "purgatory": self.name,
            "interface": self.interface,
            "faults": [
                {
                    "fault": case,
                    "replies": {one.value: found.count(one) for one in Reply if one in found},
                    "absent": self.absent.get(case),
                }
                for case, found in self.replies.items()
            ],
            "instructions_per_byte": self.instructions_per_byte,
            "scalar_instructions_per_byte": self.scalar_per_byte,
            "alignment_faults": sum(one.kind != "fp trap" for _, one in self.violations),
            "refused_by_silicon": [
                {
                    "at": place,
                    "kind": one.kind,
                    "instruction": one.text,
                    "pc": one.pc,
                    "address": one.address,
                    "size": one.size,
                }
                for place, one in self.violations
            ],
            "bufsz": self.bufsz,
            "memsz": self.memsz,
        }


class _Bench:
    """One purgatory, and as many identical machines with it loaded as are asked for."""

    def __init__(
        self, path: Path, obj: RelocatableObject, interface: str, options: Mapping[str, str]
    ) -> None:
        self.obj = obj
        self.interface = interface
        self._path, self._options = path, options
        self._kernel_file = fixture_path("guests/capture-Image").read_bytes()

    def load(
        self, initrd: int = _INITRD, more: Mapping[str, str] = _NO_OPTIONS
    ) -> tuple[Kernel, Kimage, LoadedPurgatory]:
        """A kernel with a crash image loaded, by the system call that this kind of purgatory is for."""
        config = KernelConfig("6.4", purgatory=self._path, options={**self._options, **more})
        kernel = Kernel.boot(Board("512M"), config, cmdline=_CMDLINE)
        data = Random(1).randbytes(initrd)
        if self.interface == "kernel":
            image = kernel.kexec_file_load(self._kernel_file, data, _APPEND)
        else:
            image = kernel.kexec_tools_load(self._kernel_file, data, _APPEND)
        assert image is not None and image.purgatory is not None
        return kernel, image, image.purgatory

    def reply(self, faults: Sequence[Fault]) -> Reply:
        """Inject, panic, follow to the end."""
        kernel, _, _ = self.load()
        for fault in faults:
            kernel.inject(fault)
        end = kernel.panic()
        return judge_reply(bool(faults), end.outcome, end.damage, end.purgatory, end.capture)

    def measure(self, initrd: int, more: Mapping[str, str] = _NO_OPTIONS) -> tuple[int, int, int] | None:
        """Instructions of a run that finds nothing, bytes hashed, and SP at its end; None if it does not boot."""
        kernel, image, loaded = self.load(initrd, more)
        kernel.crash()
        run = run_purgatory(kernel, image, loaded)
        if run.end is not PurgatoryEnd.KERNEL:
            return None
        return run.instructions, sum(one.size for one in image.sha_regions), kernel.board.boot_cpu.sp

    def per_byte(self, more: Mapping[str, str] = _NO_OPTIONS) -> float | None:
        """Instructions for a byte more: from two sizes, without what a run costs whatever the size."""
        small, large = self.measure(_INITRD, more), self.measure(_LARGER_INITRD, more)
        if small is None or large is None:
            return None
        return round((large[0] - small[0]) / (large[1] - small[1]), 2)

    def can(self, symbol: str) -> bool:
        """The purgatory can be told by this symbol."""
        return self.interface == "kernel" and self.obj.global_symbol(symbol) is not None

    def violations(self) -> list[tuple[str, Violation]]:
        """What silicon would refuse in good runs and in bad ones, the purgatory's own instructions only.

        A purgatory that can be told to leave the MMU off, or the SHA-2 instructions alone, is run that way too, and one
        that can check early is asked to.
        """
        ways: list[Mapping[str, str]] = [_NO_OPTIONS]
        if self.can("purgatory_no_mmu"):
            ways.append({"KEXEC_PURGATORY_MMU": "n"})
            if self.can("purgatory_no_crypto"):
                ways.append({"KEXEC_PURGATORY_MMU": "n", **_SCALAR})
        if self.can("purgatory_check"):
            ways.append({"KEXEC_PURGATORY_EARLY_CHECK": "y", "KEXEC_PURGATORY_MMU": "n"})
        found: dict[tuple[int, str], tuple[str, Violation]] = {}
        for more in ways:
            for damaged in (False, True):
                kernel, _, loaded = self.load(more=more)
                if damaged:
                    kernel.dma_write("initrd+0x1000", b"\xa5\x5a\xa5\x5a")
                with AccessChecker(kernel.board.boot_cpu) as checker:
                    kernel.panic()
                for one in checker.violations:
                    if one.pc in loaded.segment.area:
                        found.setdefault((one.pc, one.kind), (_place(loaded, one.pc), one))
        return list(found.values())


def _place(loaded: LoadedPurgatory, phys: int) -> str:
    """SYMBOL+OFFSET of an instruction: the nearest symbol before it."""
    before = [(start, name) for name, (start, _) in loaded.symbol_table().items() if start <= phys]
    start, name = max(before, default=(loaded.segment.mem, "purgatory"))
    return f"{name}+{phys - start:#x}"


def _stack_top(loaded: LoadedPurgatory, sp: int | None) -> int | None:
    """Where the stack begins: its symbol, else where SP is after a good run, if that is in the purgatory."""
    symbol = loaded.symbol_table().get("purgatory_stack_top")
    if symbol is not None:
        return symbol[0]
    area = loaded.segment.area
    return sp if sp is not None and area.start + 64 <= sp <= area.end else None


def check_purgatory(
    name: str,
    path: Path,
    obj: RelocatableObject,
    interface: str,
    options: Mapping[str, str] = _NO_OPTIONS,
    progress: Progress = lambda: None,
) -> Check:
    """Run the whole set against the object in a file.

    interface is "kernel" (loaded by kexec_file_load) or "kexec-tools" (by kexec_load); options are the first kernel's;
    progress is called after each run. Raises KexecError when the load is refused.
    """
    bench = _Bench(path, obj, interface, options)
    small = bench.measure(_INITRD)
    per_byte = bench.per_byte()
    scalar = bench.per_byte(_SCALAR) if bench.can("purgatory_no_crypto") else None
    kernel, image, loaded = bench.load()
    stack_top = _stack_top(loaded, small[2] if small is not None else None)
    replies: dict[str, list[Reply]] = {}
    absent: dict[str, str] = {}
    for case in cases(kernel.ram, image, obj, loaded, interface, stack_top):
        replies[case.name] = _run(bench, case, progress)
        if case.absent:
            absent[case.name] = case.absent
    violations = bench.violations()
    segment = loaded.segment
    return Check(name, interface, replies, per_byte, scalar, violations, segment.bufsz, segment.memsz, absent)


def _run(bench: _Bench, case: Case, progress: Progress) -> list[Reply]:
    replies = []
    for faults in case.runs:
        replies.append(bench.reply(faults))
        progress()
    return replies


# -- what is printed -----------------------------------------------------------------------------------------------


def print_checks(checks: Sequence[Check], json: bool, required: Sequence[str] = ()) -> bool:
    """One table, a column for each purgatory; or one JSON object. True if all that is required is there.

    What is not is one line on stderr.
    """
    rows = [{word: unmet(word, one.replies) for word in required} for one in checks]
    if json:
        told = [
            {**one.as_object(), **({"unmet": found} if required else {})}
            for one, found in zip(checks, rows, strict=True)
        ]
        sys.stdout.write(json_module.dumps({"purgatories": told}, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(_table(checks)) + "\n")
    wrong = [
        f"{word}: {one.name}: {', '.join(where)}"
        for one, found in zip(checks, rows, strict=True)
        for word, where in found.items()
        if where
    ]
    if wrong:
        print(f"kexecemu: not as required: {'; '.join(wrong)}", file=sys.stderr)
    return not wrong


def _table(checks: Sequence[Check]) -> list[str]:
    rows: list[list[str]] = [["fault", *(one.name for one in checks)], []]
    for case in checks[0].replies:
        found = [one.replies[case] for one in checks]
        if max(map(len, found)) <= 1:
            rows.append([case, *(one[0].value if one else _ABSENT for one in found)])
            continue
        rows.append([case, *("" for _ in checks)])
        for reply in Reply:
            counts = [Counter(one)[reply] for one in found]
            if any(counts):
                cells = (str(count) if one else _ABSENT for count, one in zip(counts, found, strict=True))
                rows.append([f"  {reply.value}", *cells])
    rows += [
        [],
        ["loaded by", *("kexec_file_load" if c.interface == "kernel" else "kexec_load" for c in checks)],
        ["instructions per byte", *(_number(one.instructions_per_byte) for one in checks)],
        ["  without SHA-2 instructions", *(_number(one.scalar_per_byte) for one in checks)],
        ["alignment faults on silicon", *(str(_kinds(one, False)) for one in checks)],
        ["trapped FP instructions", *(str(_kinds(one, True)) for one in checks)],
        ["loaded bytes", *(f"{one.bufsz:,}" for one in checks)],
        ["  in memory", *(f"{one.memsz:,}" for one in checks)],
    ]
    widths = [max(len(row[at]) for row in rows if row) for at in range(len(checks) + 1)]
    rows[1] = ["-" * width for width in widths]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
    blanks = [f"  {row}: {why}" for row, why in _blanks(checks)]
    if blanks:
        lines += ["", f"{_ABSENT} says that there is nothing to tell:", *blanks]
    for one in checks:
        if one.violations:
            lines += ["", f"{one.name}: what silicon refuses in it, and this machine does not"]
            lines += [f"  {place:<24}{violation}" for place, violation in one.violations]
    return lines


def _blanks(checks: Sequence[Check]) -> Iterator[tuple[str, str]]:
    """The rows with blanks in them, and why those are there."""
    for one in checks:
        for row, why in one.absent.items():
            yield row, f"{one.name}: {why}"
    for one in checks:
        if one.instructions_per_byte is None:
            yield "instructions per byte", f"{one.name}: it does not boot an untouched image"
    for one in checks:
        if one.scalar_per_byte is None:
            boots = one.instructions_per_byte is not None
            why = "it cannot be told to do without them" if boots else "it does not boot an untouched image"
            yield "without SHA-2 instructions", f"{one.name}: {why}"


def _number(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.2f}"


def _kinds(check: Check, trapped: bool) -> int:
    return sum((one.kind == "fp trap") == trapped for _, one in check.violations)


@contextmanager
def progress_of(purgatories: int) -> Iterator[Progress]:
    """A bar of runs on stderr where that is a terminal, for so many purgatories."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("faults", total=RUNS * purgatories)
        yield lambda: bar.advance(task)

"""One purgatory against a fixed set of faults, one at a time, each on a machine of its own: what it made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from kexecemu.crash.kernel import Kernel
from kexecemu.crash.purgatory_check import Case, Reply, cases, code_areas, judge_reply, more_cases
from kexecemu.crash.running import run_purgatory
from kexecemu.crash.stages import PurgatoryEnd
from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.access import AccessChecker, Violation
from kexecemu.machine.memory.ram import Ram
from kexecemu.shown import shown
from kexecemu.stray.fault import Fault
from kexecemu.stray.target import resolve
from kexecemu.suggest import there_are

__all__ = [
    "Check",
    "Modelled",
    "OnCase",
    "check_purgatory",
    "every_case",
    "instructions_per_byte",
    "model_replies",
]

_INITRD = 0x4000
_LARGER_INITRD = 0x24000
_CMDLINE = "crashkernel=64M rodata=off"  # blocks in the linear map: the machine is up sooner
_APPEND = "console=ttyAMA0 nr_cpus=1"
_NO_OPTIONS: Mapping[str, str] = {}
_SCALAR: Mapping[str, str] = {"KEXEC_PURGATORY_CRYPTO": "n"}

OnCase = Callable[[], None]


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
                {"at": place, "kind": one.kind, "instruction": one.text}
                | {key: getattr(one, key) for key in ("pc", "address", "size")}
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
        load = kernel.kexec_file_load if self.interface == "kernel" else kernel.kexec_tools_load
        image = load(self._kernel_file, data, _APPEND)
        assert image is not None and image.purgatory is not None
        return kernel, image, image.purgatory

    def reply(self, faults: Sequence[Fault], budget: int = 0) -> tuple[Reply, int | None, bool]:
        """Inject, panic, follow to the end.

        Also the address of the purgatory's last abort, if it has one, and whether it has stored to its own code.
        """
        kernel, _, loaded = self.load()
        kernel.purgatory_budget = budget
        for fault in faults:
            kernel.inject(fault)

        def code() -> list[bytes]:
            return [kernel.ram.read(area.start, area.size) for area in code_areas(self.obj, loaded)]

        before, end = code(), kernel.panic()
        abort = end.purgatory.fault if end.purgatory is not None else None
        reply = judge_reply(bool(faults), end.outcome, end.damage, end.purgatory, end.capture)
        return reply, abort.far if abort is not None and abort.has_far else None, code() != before

    def measure(
        self, initrd: int, more: Mapping[str, str] = _NO_OPTIONS, budget: int = 0
    ) -> tuple[int, int, int] | None:
        """Instructions of a run that finds nothing, bytes hashed, and SP at its end; None if it does not boot.

        budget is what it may take at least, as FirstKernel.purgatory_budget.
        """
        kernel, image, _ = self.load(initrd, more)
        kernel.purgatory_budget = budget
        kernel.crash()
        run = run_purgatory(kernel, image)
        if run.end is not PurgatoryEnd.KERNEL:
            return None
        return run.instructions, sum(one.size for one in image.sha_regions), kernel.board.boot_cpu.sp

    def per_byte(self, more: Mapping[str, str] = _NO_OPTIONS) -> float | None:
        """Instructions for a byte more: from two sizes, without what a run costs whatever the size."""
        small = self.measure(_INITRD, more)
        if small is None:
            return None
        # As slow as it was with less: what is usual may not do for the larger one.
        large = self.measure(_LARGER_INITRD, more, 2 * small[0] * _LARGER_INITRD // _INITRD)
        if large is None:
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


@shown()
@dataclass(frozen=True)
class Modelled:
    """What the model says of a row's runs, where each aborted (physical) or None, and why there is no run.

    hit is what of the purgatory each run writes to, as SYMBOL+OFFSET: "" where it is something else. rewritten says of
    each whether the purgatory has stored to its own code.
    """

    replies: list[Reply]
    aborted: list[int | None]
    absent: str
    hit: list[str]
    rewritten: list[bool]


_REAL_TIME = 2_000_000_000  # instructions; a real machine is given some ten times as many


def model_replies(path: Path, obj: RelocatableObject, rows: Sequence[str] = ()) -> dict[str, Modelled]:
    """What the model says of each row of every_case(), for a purgatory that kexec_file_load takes.

    rows are words: a row is run that has one of them in its name, all of them if there are none. Raises KexecError when
    the load is refused, InputError for a word that no row has.
    """
    bench = _Bench(path, obj, "kernel", _NO_OPTIONS)
    kernel, image, loaded = bench.load()
    every = every_case(kernel.ram, image, obj, loaded)
    for word in rows:
        if not any(word in case.name for case in every):
            names = [repr(case.name) for case in every]
            raise InputError(f"--row {word!r}: no row has that in its name{there_are(word, names)}")
    found = {}
    for case in every if not rows else [one for one in every if any(word in one.name for word in rows)]:
        ends = [bench.reply(faults, _REAL_TIME) for faults in case.runs]
        places = [resolve(kernel, one[0]).start if one else 0 for one in case.runs]
        hit = [_place(loaded, at) if at in loaded.segment.area else "" for at in places]
        found[case.name] = Modelled(
            [reply for reply, _, _ in ends],
            [at for _, at, _ in ends],
            case.absent,
            hit,
            [own for *_, own in ends],
        )
    return found


def every_case(ram: Ram, image: Kimage, obj: RelocatableObject, loaded: LoadedPurgatory) -> list[Case]:
    """cases() and more_cases() of what kexec_file_load has loaded, by the model or by a real kernel."""
    top = _stack_top(loaded, None)
    return [*cases(ram, image, obj, loaded, "kernel", top), *more_cases(ram, image, loaded, "kernel")]


def instructions_per_byte(path: Path, obj: RelocatableObject, interface: str) -> float | None:
    """Instructions for a byte more of an intact image, counted in the emulator; None where that does not boot."""
    return _Bench(path, obj, interface, _NO_OPTIONS).per_byte()


def check_purgatory(
    name: str,
    path: Path,
    obj: RelocatableObject,
    interface: str,
    options: Mapping[str, str] = _NO_OPTIONS,
    progress: OnCase = lambda: None,
) -> Check:
    """Run the whole set against the object in a file.

    interface is "kernel" (loaded by kexec_file_load) or "kexec-tools" (by kexec_load); options are the first kernel's;
    progress is called after each run. Raises KexecError when the load is refused.
    """
    bench = _Bench(path, obj, interface, options)
    small, per_byte = bench.measure(_INITRD), bench.per_byte()
    scalar = bench.per_byte(_SCALAR) if bench.can("purgatory_no_crypto") else None
    kernel, image, loaded = bench.load()
    stack_top = _stack_top(loaded, small[2] if small is not None else None)
    replies: dict[str, list[Reply]] = {}
    absent: dict[str, str] = {}
    for case in cases(kernel.ram, image, obj, loaded, interface, stack_top):
        found = replies.setdefault(case.name, [])
        for faults in case.runs:
            found.append(bench.reply(faults)[0])
            progress()
        if case.absent:
            absent[case.name] = case.absent
    violations = bench.violations()
    segment = loaded.segment
    return Check(name, interface, replies, per_byte, scalar, violations, segment.bufsz, segment.memsz, absent)

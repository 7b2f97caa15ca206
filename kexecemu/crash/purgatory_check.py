"""A fixed set of faults that every purgatory can be measured by, and the word for what it made of one.

What is hit is the same for all: the segments that it has to check, its own code and variables, and memory that
matters to nobody. Only the names of its variables differ between the kernel's kind and kexec-tools'.
"""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from kexecemu.crash.damage import Damage
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryRun
from kexecemu.crash.verdict import Damaged, VerdictState
from kexecemu.formats.elf import SHF_EXECINSTR
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown
from kexecemu.stray.fault import By, Fault, When

__all__ = ["CODE", "RUNS", "UNTOUCHED", "Case", "Reply", "cases", "code_areas", "judge_reply", "more_cases"]

CODE_WORDS = 32
CODE, UNTOUCHED = f"purgatory's code, {CODE_WORDS} bits", "nothing"
"""The rows that are unlike the others: many runs in one, and one without a fault."""
RUNS = CODE_WORDS + 18
"""Runs of the whole set, where every case applies."""
_CAPTURED = (CaptureEnd.DONE, CaptureEnd.ENTERED, CaptureEnd.HEADERS)  # the last was told to copy nothing
_STRAY = 0xDEADBEEF
_ITSELF = Damaged.PURGATORY | Damaged.DTB_POINTER

# The same thing by each interface's name.
_INTERFACES = ("kernel", "kexec-tools")
_SYMBOLS = {
    "regions": ("purgatory_sha_regions", "sha256_regions"),
    "digest": ("purgatory_sha256_digest", "sha256_digest"),
    "entry": ("purgatory_kernel_entry", "arm64_kernel_entry"),
    "dtb": ("purgatory_dtb", "arm64_dtb_addr"),
    "console": ("purgatory_uart_base", "arm64_sink"),
    "switch": ("purgatory_policy", "skip_checks"),
    "itself": ("purgatory_self_digest", "purgatory_self_digest"),
    "code": ("purgatory", "purgatory"),
}
_REGION = 16  # bytes of an entry of the table of regions
_SAYS_YES = bytes.fromhex("000080d2 c0035fd6")  # mov x0, #0; ret
_SWITCHED_OFF = 4  # PURGATORY_BOOT_ANYWAY, and for skip_checks a value like any other but 0
_NO_STACK = "where its stack is, is not known: no purgatory_stack_top, and SP is elsewhere"


class Reply(enum.StrEnum):
    """What a purgatory made of one fault."""

    BOOTS = "boots"  # nothing was hit, and the capture kernel took its dump
    HARMLESS = "harmless"  # something was hit, and the capture kernel took its dump from intact memory
    CAUGHT = "caught"  # it refused what is damaged, or said so and booted
    MISSED = "missed"  # corrupt bytes or a wrong address reached the capture kernel or its dump, and nobody noticed
    FALSE_ALARM = "false alarm"  # every byte that it hashes is as loaded, and it refused to boot
    HUNG = "hung"  # no verdict within the budget of instructions
    TRAPPED = "trapped"  # an exception ended it, and it left no record
    TRAP_REPORTED = "trap reported"  # an exception ended it, and its record says so
    MISBOOT = "misboot"  # it jumped to what is not the kernel's entry


@shown()
@dataclass(frozen=True)
class Case:
    """One row: its name, and the faults of each run; several runs are counted.

    No runs: it does not apply, and absent says why.
    """

    name: str
    runs: tuple[tuple[Fault, ...], ...]
    absent: str = ""


def _dma(at: str | int, data: bytes) -> Fault:
    return Fault(hex(at) if isinstance(at, int) else at, write=data, by=By.DMA)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def _invert(ram: Ram, phys: int, mask: int = 0xFFFFFFFF) -> Fault:
    """A word with some of its bits inverted, all by default."""
    return _dma(phys, struct.pack("<I", ram.read_u32(phys) ^ mask))


def code_areas(obj: RelocatableObject, loaded: LoadedPurgatory) -> list[PhysRange]:
    """Where the instructions are, physical: those of the section that the entry is in.

    Where the object has mapping symbols ($x code, $d data: the ELF ABI for AArch64), data between the code is left out.
    """
    start = obj.global_symbol("purgatory_start")
    section = next(
        one
        for one in obj.sections
        if (start is not None and one.index == start.shndx)
        or (start is None and one.flags & SHF_EXECINSTR and one.addr <= obj.entry < one.addr + one.size)
    )
    base = loaded.entry - (start.value if start is not None else obj.entry - section.addr)
    marks = sorted(
        (one.value, one.name[:2]) for one in obj.symbols if one.shndx == section.index and one.name[:1] == "$"
    )
    bounds = pairwise([*marks, (section.size, "")])
    areas = [(at, end) for (at, kind), (end, _) in bounds if kind == "$x" and at < end]
    return [PhysRange(base + at, base + end) for at, end in areas or [(0, section.size)]]


def _code_words(obj: RelocatableObject, loaded: LoadedPurgatory) -> list[int]:
    """Physical addresses of instructions, spread evenly over code_areas()."""
    words = [at for area in code_areas(obj, loaded) for at in range(area.start, area.end - 3, 4)]
    return [words[(2 * each + 1) * len(words) // (2 * CODE_WORDS)] for each in range(CODE_WORDS)]


def cases(
    ram: Ram,
    image: Kimage,
    obj: RelocatableObject,
    loaded: LoadedPurgatory,
    interface: str,
    stack_top_phys: int | None,
) -> list[Case]:
    """The fixed set for a loaded image; interface is "kernel" or "kexec-tools".

    Deterministic: the same image gives the same faults. All are writes by DMA after the load, so that no page table
    has a say.
    """
    symbol, one = partial(_symbol_case, loaded, interface), _one
    kernel, initrd, tree, core = map(image.segment, ("kernel", "initrd", "dtb", "elfcorehdr"))
    assert kernel is not None and initrd is not None and tree is not None and core is not None
    middle, last = kernel.bufsz // 2, kernel.bufsz - 1
    stray_initrd = _invert(ram, initrd.mem + 0x1000)
    # 11 and 32 have no factor in common: each bit once.
    words = enumerate(_code_words(obj, loaded))
    code = tuple((_invert(ram, phys, 1 << (11 * number + 3) % 32),) for number, phys in words)
    digest = ram.read(loaded.symbol_phys(_SYMBOLS["digest"][_INTERFACES.index(interface)]), 1)
    return [
        Case(UNTOUCHED, ((),)),
        one("kernel, first word", _invert(ram, kernel.mem)),
        one("kernel, a bit in the middle", Fault(f"kernel+{middle}", flip=0x10, by=By.DMA)),
        one("kernel, last byte", Fault(f"kernel+{last}", flip=0xFF, by=By.DMA)),
        one("initrd, a word", stray_initrd),
        one("device tree, a word", _invert(ram, tree.mem + 0x40)),
        one("elfcorehdr, a word", _invert(ram, core.mem + 0x40)),
        Case(CODE, code),
        symbol("stored digest, a byte", "digest", bytes(one ^ 0xFF for one in digest)),
        symbol("regions[0].len = 0", "regions", bytes(8), 8),
        symbol("regions[0].start = 0xdeadbeef", "regions", _u64(_STRAY)),
        symbol("regions[0].len = 0xdeadbeef", "regions", _u64(_STRAY), 8),
        symbol("kernel's entry + 0x1000", "entry", _u64(image.kernel_entry + 0x1000)),
        symbol("device tree's address + 0x1000", "dtb", _u64(image.dtb_mem + 0x1000)),
        symbol("console's address = 0xdeadbeef", "console", _u64(_STRAY)),
        symbol("check switched off, and initrd", "switch", bytes([_SWITCHED_OFF]), 0, stray_initrd),
        Case("stack", (), _NO_STACK)
        if stack_top_phys is None
        else one("stack", _dma(stack_top_phys - 64, b"\xa5" * 64)),
        one("free memory", _dma("crashkernel-free+0x1000", b"\xa5" * 8)),
        one("initrd, the same value", _dma("initrd+0x1000", ram.read(initrd.mem + 0x1000, 4))),
    ]


def more_cases(ram: Ram, image: Kimage, loaded: LoadedPurgatory, interface: str) -> list[Case]:
    """What a real kernel is tried with beyond cases(): heads and ends of the segments, and what the loader sets."""
    symbol = partial(_symbol_case, loaded, interface)
    kernel, initrd, tree, core = map(image.segment, ("kernel", "initrd", "dtb", "elfcorehdr"))
    assert kernel is not None and initrd is not None and tree is not None and core is not None
    stray_initrd, stray_kernel = _invert(ram, initrd.mem + 0x1000), _invert(ram, kernel.mem + 0x2000)
    table = _SYMBOLS["regions"][_INTERFACES.index(interface)]
    first = ram.read(loaded.symbol_phys(table), 2 * _REGION) if loaded.has_symbol(table) else b""
    rows = [
        _one("kernel, its magic number", _invert(ram, kernel.mem + 56)),
        Case("kernel, behind its file", ((_dma(kernel.mem + kernel.memsz - 8, b"\xa5" * 8),),))
        if kernel.memsz - kernel.bufsz >= 8
        else Case("kernel, behind its file", (), "its file fills the segment"),
        _one("initrd, last byte", Fault(f"initrd+{initrd.bufsz - 1}", flip=0xFF, by=By.DMA)),
        _one("device tree, its magic number", _invert(ram, tree.mem)),
        _one("device tree, its size", _dma(tree.mem + 4, bytes(4))),
        _one("elfcorehdr, number of headers", _dma(core.mem + 56, bytes(2))),
        Case("kernel and initrd, a word each", ((stray_kernel, stray_initrd),)),
        symbol("stored digest, zeros", "digest", bytes(32)),
        symbol("regions[0] and [1] exchanged", "regions", first[_REGION:] + first[:_REGION]),
        symbol("regions[1].len = 0", "regions", bytes(8), _REGION + 8),
        symbol("kernel's entry = 0", "entry", bytes(8)),
        symbol("its own digest, zeros", "itself", bytes(32)),
        # What no check can see, and how near to it one gets.
        _one("initrd, a word, at the jump", replace(stray_initrd, when=When.AT_JUMP)),
        _one("initrd, a word, after the check", replace(stray_initrd, when=When.AFTER_CHECK)),
        symbol("code that says yes, and initrd", "code", _SAYS_YES, 0, stray_initrd),
    ]
    return rows


def _one(row: str, fault: Fault) -> Case:
    return Case(row, ((fault,),))


def _symbol_case(
    loaded: LoadedPurgatory,
    interface: str,
    row: str,
    kind: str,
    data: bytes,
    offset: int = 0,
    *more: Fault,
) -> Case:
    """A write to a variable that has a name of its own in each interface."""
    name = _SYMBOLS[kind][_INTERFACES.index(interface)]
    if not loaded.has_symbol(name):
        return Case(row, (), f"it has no symbol {name}")
    return Case(row, ((_dma(f"purgatory:{name}+{offset}", data), *more),))


def judge_reply(
    hit: bool,
    outcome: Outcome,
    damage: Sequence[Damage],
    purgatory: PurgatoryRun | None,
    capture: CaptureRun | None,
) -> Reply:
    """The word for one run. hit says that a fault was injected; the rest is an End's.

    A refusal is right when some byte of the hashed segments is damaged, or when the purgatory says that it is itself.
    """
    harmed = any(one.segment != "purgatory" for one in damage)
    verdict = purgatory.verdict if purgatory is not None else None
    if outcome is Outcome.DETECTED:
        itself = (
            verdict.damaged & _ITSELF if verdict is not None else purgatory is not None and purgatory.itself
        )
        return Reply.CAUGHT if harmed or itself else Reply.FALSE_ALARM
    if capture is not None:
        if harmed or outcome is Outcome.SILENT or capture.end not in _CAPTURED:
            return Reply.MISSED
        return Reply.HARMLESS if hit else Reply.BOOTS
    if outcome is Outcome.TRAPPED:
        reported = verdict is not None and verdict.state is VerdictState.TRAPPED
        return Reply.TRAP_REPORTED if reported else Reply.TRAPPED
    return Reply.HUNG if outcome is Outcome.HUNG else Reply.MISBOOT

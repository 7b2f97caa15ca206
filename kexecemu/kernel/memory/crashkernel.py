"""reserve_crashkernel(): where the crash kernel's memory is, or the kernel's own words for why there is none.

Followed: arch/arm64/mm/init.c of 6.1 to 6.6, kernel/crash_reserve.c of 6.12 and 7.3.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import ENOENT
from typing import NamedTuple

from kexecemu.errors import InputError
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import CrashkernelOption, parse_crashkernel_option
from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.kernel.memory.cma import cma_declare_contiguous
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.zones import PHYS_MASK_LIMIT
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CRASH_ALIGN", "DEFAULT_LOW_SIZE", "CrashReservation", "reserve_crashkernel"]
__all__ += ["reserve_crashkernel_cma", "tells_of_reservation", "told_reservation", "why_nothing"]

_ABOUT = re.compile("cra(sh|hs)kernel|^[Mm]emory value expected")

CRASH_ALIGN = 2 << 20
DEFAULT_LOW_SIZE = 128 << 20
_HIGH_MAX = PHYS_MASK_LIMIT
_CMA_RANGES_MAX = 4  # CRASHKERNEL_CMA_RANGES_MAX
_U64 = 1 << 64

Print = Callable[[str], None]


@shown()
@dataclass(frozen=True)
class CrashReservation:
    """crashk_res and crashk_low_res as physical ranges, None where nothing is reserved; and crashk_cma_ranges.

    released is what was crash memory and is given back, as kexec_crash_size was written to.
    """

    crashk_res: PhysRange | None = None
    crashk_low_res: PhysRange | None = None
    cma: tuple[PhysRange, ...] = ()
    released: tuple[PhysRange, ...] = ()


def _reserve_low(memblock: Memblock, size: int, low_max: int, log: Print) -> PhysRange | None:
    base = memblock.phys_alloc_range(size, CRASH_ALIGN, 0, low_max)
    if not base:
        log(f"cannot allocate crashkernel low memory (size:{size:#x}).")
        return None
    log(f"crashkernel low memory reserved: 0x{base:08x} - 0x{base + size:08x} ({size >> 20} MB)")
    return PhysRange.of(base, size)


class _Asked(NamedTuple):
    """What parse_crashkernel() gives: the option, whether it was X,high, and the sizes of the others in bytes."""

    option: CrashkernelOption
    high: bool
    low_size: int
    cma_size: int


def _parse(era: Era, cmdline: str, total: int, log: Print) -> _Asked | None:
    """parse_crashkernel(), for so many bytes of RAM; None for nothing to reserve.

    What is wrong with X,cma is said, and no matter: its size counts that was read by then.
    """
    rules, low_size = era.rules, 0
    words = rules.range_prefixes
    option = parse_crashkernel_option(cmdline, total, None, log, suffixes=rules.suffixes, prefixes=words)
    high = option.error == ENOENT
    if high:
        option = parse_crashkernel_option(cmdline, total, ",high", log)
        if option.error or not option.size:
            return None
        low = parse_crashkernel_option(cmdline, total, ",low", log)
        if low.error not in (0, ENOENT):
            return None
        default = DEFAULT_LOW_SIZE if rules.falls_back_high else 0
        low_size = default if low.error else low.size
    cma_size = parse_crashkernel_option(cmdline, 0, ",cma", log).size if rules.reserves_cma else 0
    if option.error or not option.size or (rules.refuses_all_of_ram and option.size >= total):
        return None
    return _Asked(option, high, low_size, cma_size)


def tells_of_reservation(line: str) -> bool:
    """Whether a line of the log, without its time, is about crashkernel=; some releases misspell it or leave it out."""
    return bool(_ABOUT.search(line)) and "ommand line" not in line


def why_nothing(era: Era, cmdline: str, total: int, said: Sequence[str]) -> str:
    """Why a kernel with so many bytes of RAM has no crash region: by its command line, or by the last that it said."""
    return _why_nothing_asked(era, cmdline, total) or (said[-1] if said else "the kernel says nothing of it")


def _why_nothing_asked(era: Era, cmdline: str, total: int) -> str:
    """What is wrong with a command line of which the kernel says nothing; "" where it does, or nothing is wrong."""

    def parsed(suffix: str | None) -> CrashkernelOption:
        return parse_crashkernel_option(cmdline, total, suffix, suffixes=era.rules.suffixes)

    option = parsed(None)
    if option.error == ENOENT:
        option = parsed(",high")
        if option.error == ENOENT:
            others = [suffix for suffix in (",low", ",cma") if parsed(suffix).error != ENOENT]
            if not others:
                return "the first kernel's command line has no crashkernel= (--cmdline gives it one)"
            return f"crashkernel=X{others[0]} by itself reserves no crash region"
    if option.error:
        return ""
    if era.rules.refuses_all_of_ram and option.size >= total:
        asked = f"crashkernel= asks for {option.size:#x} bytes, all of RAM ({total:#x}) or more"
        return f"{asked}: the kernel refuses it without a word"
    return "" if option.size else "crashkernel= asks for no bytes"


def _windows(
    era: Era, option: CrashkernelOption, size: int, high: bool, low_max: int
) -> list[tuple[int, int]]:
    """Where it is looked for, one after the other: from a physical address to another."""
    rules = era.rules
    if option.base:
        return [(option.base, option.base + size)]
    if not rules.falls_back_low:
        windows = [(0, _HIGH_MAX)] if high else [(0, low_max), (0, _HIGH_MAX)]
        return windows if rules.falls_back_high else windows[:1]
    return [(low_max, _HIGH_MAX), (0, low_max)] if high else [(0, low_max), (low_max, _HIGH_MAX)]


def _needs_low(era: Era, base: int, low_size: int, low_max: int) -> bool:
    if era.rules.low_where_it_reaches_over:
        return base > low_max - low_size
    return base >= low_max


def reserve_crashkernel(
    era: Era, cmdline: str, memblock: Memblock, dma_phys_limit: int, page_size: int, log: Print
) -> CrashReservation:
    """Reserve crash memory as the command line asks; log gets every message that the kernel would print.

    dma_phys_limit is a physical address (arm64_dma_phys_limit), page_size in bytes. An option that cannot be read
    or satisfied gives an empty reservation, as in the kernel: the machine boots on without a crash kernel. InputError
    where the era's kernel never comes out of this.
    """
    rules, low_max = era.rules, dma_phys_limit
    asked = _parse(era, cmdline, memblock.phys_mem_size, log)
    if asked is None:
        return CrashReservation()
    option, high, low_size, _ = asked
    size = option.size if rules.generic_reservation else align_up(option.size, page_size)
    base = 0
    for attempt, (start, end) in enumerate(_windows(era, option, size, high, low_max)):
        if attempt and not high:  # fell back to high memory: the capture kernel needs some low memory too
            low_size = DEFAULT_LOW_SIZE
        base = memblock.phys_alloc_range(size, CRASH_ALIGN, start, end) if start < end else 0
        if base:
            break
    if not base:
        if low_max >= _HIGH_MAX and not option.base and not rules.gives_up:
            raise InputError(
                f"a kernel of the {era.value} era tries for ever to reserve crashkernel memory of {size:#x} bytes: "
                "there are no DMA zones (mended in 6.11)"
            )
        in_use = option.base and rules.falls_back_low
        log(
            "crashkernel reservation failed - memory is in use."
            if in_use
            else f"cannot allocate crashkernel (size:{size:#x})"
        )
        return CrashReservation()
    low = None
    if low_size and _needs_low(era, base, low_size, low_max):
        low = _reserve_low(memblock, low_size, low_max, log)
        if low is None:
            memblock.free(PhysRange.of(base, size))
            return CrashReservation()
    log(f"crashkernel reserved: 0x{base:016x} - 0x{base + size:016x} ({size >> 20} MB)")
    return CrashReservation(PhysRange.of(base, size), low)


def told_reservation(known: CrashReservation, log: Print) -> CrashReservation:
    """A reservation that is known, with the words about it."""
    low, area = known.crashk_low_res, known.crashk_res
    if low is not None:
        log(f"crashkernel low memory reserved: 0x{low.start:08x} - 0x{low.end:08x} ({low.size >> 20} MB)")
    if area is not None:
        log(f"crashkernel reserved: 0x{area.start:016x} - 0x{area.end:016x} ({area.size >> 20} MB)")
    return known


def reserve_crashkernel_cma(
    config: KernelConfig, cmdline: str, memblock: Memblock, log: Print
) -> tuple[PhysRange, ...]:
    """crashkernel=X,cma: memory that the first kernel uses for what can be moved, and the capture kernel takes over.

    Up to four areas; where one is not to be had, areas half as large are tried. reserve_crashkernel() was before, and
    has said what there is to say of the command line.
    """
    asked = _parse(config.release, cmdline, memblock.phys_mem_size, lambda said: None)
    if asked is None or not asked.cma_size:
        return ()
    size = asked.cma_size
    if not config.enabled("CMA"):
        log("crashkernel CMA reservation not supported")
        return ()
    page = config.page_size
    # In 64 bits: what is within a page of their end is nothing.
    request, reserved, found = align_up(size, page) % _U64, 0, list[PhysRange]()
    while size > reserved and len(found) < _CMA_RANGES_MAX:
        area = cma_declare_contiguous(config, memblock, request, log)
        if area is not None:
            found.append(area)
            reserved += request
        elif request <= page:
            break
        else:
            request = align_up(request // 2, page)
    ranges = f"{reserved >> 20} MB{' reserved' if size > reserved else ''} in {len(found)} ranges"
    if size > reserved:
        log(f"crashkernel CMA reservation failed: {size >> 20} MB requested, {ranges}")
    else:
        log(f"crashkernel CMA reserved: {ranges}")
    return tuple(found)

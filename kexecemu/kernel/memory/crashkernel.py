"""reserve_crashkernel(): where the crash kernel's memory is, or the kernel's own words for why there is none.

Followed: arch/arm64/mm/init.c of 6.1 (also right for 6.4), kernel/crash_reserve.c of 6.12.
"""

from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOENT

from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import CrashkernelOption, parse_crashkernel_option
from kexecemu.kernel.base.config import Era
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.zones import PHYS_MASK_LIMIT
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CRASH_ALIGN", "DEFAULT_LOW_SIZE", "CrashReservation", "reserve_crashkernel"]

CRASH_ALIGN = 2 << 20
DEFAULT_LOW_SIZE = 128 << 20
_HIGH_MAX = PHYS_MASK_LIMIT

Print = Callable[[str], None]


@shown()
@dataclass(frozen=True)
class CrashReservation:
    """crashk_res and crashk_low_res as physical ranges; None where nothing is reserved."""

    crashk_res: PhysRange | None = None
    crashk_low_res: PhysRange | None = None


def _reserve_low(memblock: Memblock, size: int, low_max: int, log: Print) -> PhysRange | None:
    base = memblock.phys_alloc_range(size, CRASH_ALIGN, 0, low_max)
    if not base:
        log(f"cannot allocate crashkernel low memory (size:{size:#x}).")
        return None
    log(f"crashkernel low memory reserved: 0x{base:08x} - 0x{base + size:08x} ({size >> 20} MB)")
    return PhysRange.of(base, size)


def _finish(
    memblock: Memblock, base: int, size: int, low_size: int, low_max: int, log: Print
) -> CrashReservation:
    """The common end: the low part where the main part is high, then the message."""
    low = None
    if base >= low_max and low_size:
        low = _reserve_low(memblock, low_size, low_max, log)
        if low is None:
            memblock.free(PhysRange.of(base, size))
            return CrashReservation()
    log(f"crashkernel reserved: 0x{base:016x} - 0x{base + size:016x} ({size >> 20} MB)")
    return CrashReservation(PhysRange.of(base, size), low)


def _reserve_6_1(
    cmdline: str, memblock: Memblock, low_max: int, page_size: int, log: Print
) -> CrashReservation:
    parsed = _parse(cmdline, memblock.phys_mem_size, 0, log)
    if parsed is None:
        return CrashReservation()
    option, low_size, high = parsed
    size = align_up(option.size, page_size)
    crash_max = option.base + size if option.base else _HIGH_MAX if high else low_max
    base = memblock.phys_alloc_range(size, CRASH_ALIGN, option.base, crash_max)
    if not base:
        log(f"cannot allocate crashkernel (size:{size:#x})")
        return CrashReservation()
    return _finish(memblock, base, size, low_size, low_max, log)


def _parse(
    cmdline: str, total: int, default_low: int, log: Print
) -> tuple[CrashkernelOption, int, bool] | None:
    """parse_crashkernel(): the option, the low size and whether ,high was asked for; None for nothing to reserve."""
    option = parse_crashkernel_option(cmdline, total, None, log)
    high = option.error == ENOENT
    if high:
        option = parse_crashkernel_option(cmdline, total, ",high", log)
    if option.error or not option.size:
        return None
    low = parse_crashkernel_option(cmdline, total, ",low", log) if high else CrashkernelOption()
    if low.error not in (0, ENOENT):
        return None
    return option, default_low if low.error else low.size, high


def _reserve_generic(
    cmdline: str, memblock: Memblock, low_max: int, page_size: int, log: Print
) -> CrashReservation:
    parsed = _parse(cmdline, memblock.phys_mem_size, DEFAULT_LOW_SIZE, log)
    if parsed is None or parsed[0].size >= memblock.phys_mem_size:
        return CrashReservation()
    option, low_size, high = parsed
    size = align_up(option.size, page_size)
    if option.base:
        windows = [(option.base, option.base + size)]
    elif high:
        windows = [(low_max, _HIGH_MAX), (0, low_max)]
    else:
        windows = [(0, low_max), (low_max, _HIGH_MAX)]
    for attempt, (start, end) in enumerate(windows):
        if attempt and not high:  # fell back to high memory: the capture kernel needs some low memory too
            low_size = DEFAULT_LOW_SIZE
        if start >= end:
            continue
        base = memblock.phys_alloc_range(size, CRASH_ALIGN, start, end)
        if base:
            return _finish(memblock, base, size, low_size, low_max, log)
    failed = f"cannot allocate crashkernel (size:{size:#x})"
    log("crashkernel reservation failed - memory is in use." if option.base else failed)
    return CrashReservation()


def reserve_crashkernel(
    era: Era, cmdline: str, memblock: Memblock, dma_phys_limit: int, page_size: int, log: Print
) -> CrashReservation:
    """Reserve crash memory as the command line asks; log gets every message that the kernel would print.

    dma_phys_limit is a physical address (arm64_dma_phys_limit), page_size in bytes. An option that cannot be read
    or satisfied gives an empty reservation, as in the kernel: the machine boots on without a crash kernel.
    """
    reserve = _reserve_generic if era.rules.generic_reservation else _reserve_6_1
    return reserve(cmdline, memblock, dma_phys_limit, page_size, log)

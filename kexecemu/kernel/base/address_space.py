"""Where things are in the kernel's virtual address space (arch/arm64/include/asm/memory.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from kexecemu.kernel.base.config import KernelConfig
from kexecemu.shown import shown

__all__ = ["AddressSpace", "align_up", "memstart_addr", "roundup_pow_of_two"]

_U64 = 1 << 64
_MEMSTART_SHIFT = {4096: 30, 16384: 30, 65536: 29}


def align_up(value: int, align: int) -> int:
    """ALIGN(): the first multiple of align (0: any number) from value on."""
    return -(-value // align) * align if align else value


def roundup_pow_of_two(value: int) -> int:
    """roundup_pow_of_two(): the first power of two from value on."""
    return 1 << max(0, value - 1).bit_length()


def memstart_addr(start_of_dram: int, page_size: int) -> int:
    """memstart_addr: the physical address that PAGE_OFFSET maps, ARM64_MEMSTART_ALIGN below the start of DRAM."""
    align = 1 << _MEMSTART_SHIFT[page_size]
    return start_of_dram & ~(align - 1)


@shown()
@dataclass(frozen=True)
class AddressSpace:
    """The two ways in which the kernel sees physical memory: the linear map, and its own image.

    memstart is a physical address; kimage_vaddr and kimage_phys say where _text is, kimage_size how far _end is from
    it, in bytes. va_bits is VA_BITS, vabits_actual what the CPU has of them, modules_vsize and vmemmap_at_end what the
    era does (see Rules).
    """

    memstart: int
    kimage_vaddr: int
    kimage_phys: int
    kimage_size: int
    va_bits: int = 48
    vabits_actual: int = 48
    modules_vsize: int = 128 << 20
    vmemmap_at_end: bool = False

    @classmethod
    def of(cls, config: KernelConfig, memstart: int, vaddr: int, phys: int, size: int) -> Self:
        """The address space of a kernel of that configuration; the others as in the class."""
        rules = config.release.rules
        return cls(
            memstart,
            vaddr,
            phys,
            size,
            config.va_bits,
            config.vabits_actual,
            rules.modules_vsize,
            rules.vmemmap_at_end,
        )

    @property
    def page_offset(self) -> int:
        """_PAGE_OFFSET(vabits_actual): the virtual address at which the linear map starts."""
        return _U64 - (1 << self.vabits_actual)

    @property
    def phys_offset(self) -> int:
        """memstart_addr, signed: what would be at PAGE_OFFSET, where a CPU of less than VA_BITS has nothing."""
        return self.memstart - ((1 << self.va_bits) - (1 << self.vabits_actual))

    @property
    def page_end(self) -> int:
        """PAGE_END: the virtual address at which the linear region ends."""
        return _U64 - (1 << (self.vabits_actual - 1))

    @property
    def linear_region_size(self) -> int:
        """How much physical memory the linear map can hold, in bytes."""
        return self.page_end - self.page_offset

    @property
    def kimage_voffset(self) -> int:
        """kimage_voffset: virtual minus physical address of the kernel image, modulo 2^64."""
        return (self.kimage_vaddr - self.kimage_phys) % _U64

    def linear_virt(self, phys: int) -> int:
        """__phys_to_virt(): the linear map's virtual address of a physical one."""
        return phys - self.memstart + self.page_offset

    def virt_to_phys(self, virt: int) -> int:
        """__virt_to_phys(): arithmetic only, as in the kernel; says nothing about whether it is mapped."""
        if virt < self.page_end:
            return (virt - self.page_offset + self.memstart) % _U64
        return (virt - self.kimage_voffset) % _U64

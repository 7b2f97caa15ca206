"""Where things are in the kernel's virtual address space (arch/arm64/include/asm/memory.h)."""

from dataclasses import dataclass

from kexecemu.shown import shown

__all__ = ["AddressSpace", "align_up", "memstart_addr"]

_U64 = 1 << 64
_MEMSTART_SHIFT = {4096: 30, 16384: 30, 65536: 29}


def align_up(value: int, align: int) -> int:
    """ALIGN(): the first multiple of align (0: any number) from value on."""
    return -(-value // align) * align if align else value


def memstart_addr(start_of_dram: int, page_size: int) -> int:
    """memstart_addr: the physical address that PAGE_OFFSET maps, ARM64_MEMSTART_ALIGN below the start of DRAM."""
    align = 1 << _MEMSTART_SHIFT[page_size]
    return start_of_dram & ~(align - 1)


@shown()
@dataclass(frozen=True)
class AddressSpace:
    """The two ways in which the kernel sees physical memory: the linear map, and its own image.

    va_bits is 48; memstart a physical address; kimage_vaddr and kimage_phys say where _text is, kimage_size how far
    _end is from it, in bytes.
    """

    memstart: int
    kimage_vaddr: int
    kimage_phys: int
    kimage_size: int
    va_bits: int = 48

    @property
    def page_offset(self) -> int:
        """PAGE_OFFSET: the virtual address at which the linear map starts."""
        return _U64 - (1 << self.va_bits)

    @property
    def page_end(self) -> int:
        """PAGE_END: the virtual address at which the linear region ends."""
        return _U64 - (1 << (self.va_bits - 1))

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

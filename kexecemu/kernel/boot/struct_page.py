"""struct page in guest memory: where a page frame's is, and what it says (include/linux/mm_types.h, page-flags.h).

All of them are zero but for those that a reader of a dump asks for: a large board must not pay for its memory map.
"""

import struct

from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.boot.vmcoreinfo_lines import vmcoreinfo_numbers
from kexecemu.kernel.memory.sparsemem import STRUCT_PAGE_SIZE, MemoryMap, section_size_bits, vmemmap_base
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["NO_TYPE", "StructPages"]

NO_TYPE = 0xFFFFFFFF
"""_mapcount and page_type of a page that nobody maps and that is of no type."""

# flags, lru.next, lru.prev, mapping, index, private, _mapcount or page_type, _refcount, memcg_data
_PAGE = struct.Struct("<QQQQQQIIQ")


@shown()
class StructPages:
    """The memory map of a kernel, by page frame numbers."""

    def __init__(self, guest: GuestKernel, config: KernelConfig, memory_map: MemoryMap) -> None:
        self._ram = guest.ram
        self._memory_map = memory_map
        self._per_section_bits = section_size_bits(config.page_size) - (config.page_size.bit_length() - 1)
        self._base = vmemmap_base(guest.space, config.page_size)
        self._lru = guest.vmlinux.offsetof("page", "lru")
        self.numbers = vmcoreinfo_numbers(config)
        """Bits and types of pages, by the names that they have in VMCOREINFO."""

    def virt(self, pfn: int) -> int:
        """pfn_to_page()."""
        return (self._base + pfn * STRUCT_PAGE_SIZE) % (1 << 64)

    def lru_virt(self, pfn: int) -> int:
        """Where the links of a page on a list are."""
        return self.virt(pfn) + self._lru

    def phys(self, pfn: int) -> int | None:
        """Where it is in memory, None where the memory map has no part for it."""
        section = self._memory_map.get(pfn >> self._per_section_bits)
        if section is None:
            return None
        return section + (pfn & (1 << self._per_section_bits) - 1) * STRUCT_PAGE_SIZE

    def write(self, pfn: int, content: bytes) -> None:
        """Set one, or several in a section."""
        phys = self.phys(pfn)
        if phys is not None:
            self._ram.write(phys, content)

    def set_buddy(self, pfn: int, order: int, following: int, before: int) -> None:
        """set_buddy_order(): a free block's first page, on a list between two virtual addresses of links."""
        kind = self.numbers["PAGE_BUDDY_MAPCOUNT_VALUE"] % (1 << 32)
        self.write(pfn, _PAGE.pack(0, following, before, 0, 0, order, kind, 0, 0))

    def set_reserved(self, area: PhysRange, page_size: int) -> None:
        """reserve_bootmem_region(): PageReserved for all pages that an area has a part of; they are in use."""
        # It is the bit before PG_private in all releases.
        flags = 1 << self.numbers["PG_private"] - 1
        pfn, end_pfn = area.start // page_size, -(-area.end // page_size)
        while pfn < end_pfn:
            following = min(end_pfn, ((pfn >> self._per_section_bits) + 1) << self._per_section_bits)
            lru = (self.lru_virt(one) for one in range(pfn, following))
            pages = (_PAGE.pack(flags, at, at, 0, 0, 0, NO_TYPE, 1, 0) for at in lru)
            self.write(pfn, b"".join(pages))
            pfn = following

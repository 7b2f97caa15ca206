"""The tables that exist before the linear map: the identity map, and the kernel image in swapper_pg_dir.

Followed: head.S and map_kernel() of arch/arm64. The tables' memory is static in the image at this time, because
memblock does not exist yet; swapper_pg_dir's later tables come from memblock (paging_init()).
"""

from collections.abc import Callable

from kexecemu.errors import MachineError
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.memory.linear_map import MAIR_VALUE, PAGE_KERNEL, PAGE_KERNEL_RO, PAGE_KERNEL_ROX
from kexecemu.machine.memory.descriptors import Granule, TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.shown import shown

__all__ = ["EarlyTables", "granule_of"]

_SCTLR_ON = 0x30500800 | 1 << 0 | 1 << 2 | 1 << 12 | 1 << 23  # RES1 bits, M, C, I, SPAN

# Permissions of the image's parts, from one symbol to the next, as map_kernel() sets them.
_IMAGE = (
    ("_text", "_stext", PAGE_KERNEL_RO),
    ("_stext", "_etext", PAGE_KERNEL_ROX),
    ("__start_rodata", "__init_begin", PAGE_KERNEL_RO),
    ("__init_begin", "_end", PAGE_KERNEL),
)


def granule_of(page_size: int) -> Granule:
    """The translation granule of a PAGE_SIZE in bytes."""
    return {4096: Granule.K4, 16384: Granule.K16, 65536: Granule.K64}[page_size]


def tcr_value(fmt: TableFormat) -> int:
    """TCR_EL1 for both halves alike: T0SZ and T1SZ, write-back inner shareable walks, TG0/TG1, 48-bit IPS, AS."""
    size = 64 - fmt.va_bits
    tg0 = {Granule.K4: 0, Granule.K64: 1, Granule.K16: 2}[fmt.granule]
    tg1 = {Granule.K16: 1, Granule.K4: 2, Granule.K64: 3}[fmt.granule]
    walk = 1 << 0 | 1 << 2 | 3 << 4  # IRGN, ORGN: write-back write-allocate; SH: inner
    return size | size << 16 | walk << 8 | walk << 24 | tg0 << 14 | tg1 << 30 | 5 << 32 | 1 << 36


@shown("idmap", "swapper")
class EarlyTables:
    """idmap_pg_dir and swapper_pg_dir of a guest kernel."""

    def __init__(self, guest: GuestKernel, page_size: int) -> None:
        self._guest = guest
        self._page_size = page_size
        self.fmt = TableFormat(granule_of(page_size), guest.space.vabits_actual)
        start, size = guest.phys("init_pg_dir"), guest.vmlinux.elf.symbol_table["init_pg_dir"].size
        self.spare = list(range(start, start + size, page_size))
        """Physical addresses of the zeroed tables inside the image's bss that nothing uses yet."""
        self._alloc: Callable[[], int] = self._next_static
        self.idmap = self._tables("idmap_pg_dir")
        self.swapper = self._tables("swapper_pg_dir")

    def _tables(self, root: str) -> PageTables:
        return PageTables(self._guest.ram, self.fmt, self._guest.phys(root), lambda: self._alloc())

    def _next_static(self) -> int:
        if not self.spare:
            raise MachineError("init_pg_dir is too small for the kernel image's own mapping")
        return self.spare.pop(0)

    def use(self, alloc: Callable[[], int]) -> None:
        """From now on take tables from alloc(), which returns the physical address of a zeroed page."""
        self._alloc = alloc

    def create(self) -> None:
        """Fill both tables and set the variables that __cpu_setup and __enable_mmu read."""
        guest, page = self._guest, self._page_size
        start = guest.phys("__idmap_text_start") // page * page
        end = -(-guest.phys("__idmap_text_end") // page) * page
        self.idmap.map(start, start, end - start, PAGE_KERNEL_ROX, blocks=False, contiguous=False)
        for first, last, attributes in _IMAGE:
            virt, size = guest.vmlinux.virt(first), guest.vmlinux.virt(last) - guest.vmlinux.virt(first)
            if size:
                self.swapper.map(virt, guest.phys(first), size, attributes, blocks=True, contiguous=False)
        guest.write("init_tcr_el1", tcr_value(self.fmt))
        guest.write("init_mair_el1", MAIR_VALUE)
        guest.write("init_sctlr_el1", _SCTLR_ON)
        guest.write("init_ttbr0_phys", self.idmap.root_phys)
        guest.write("init_ttbr1_phys", self.swapper.root_phys)

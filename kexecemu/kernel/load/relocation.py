"""An ordinary kexec: where the new kernel's pages wait, the list by which they are moved, and the tables for that.

Followed: kimage_load_normal_segment() and kimage_add_entry() of kernel/kexec_core.c, machine_kexec_post_load() and
trans_pgd.c of arch/arm64. The list, the code and the tables are guest memory; the moving is done by guest code
(fixtures/minikernel/relocate_kernel.S).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOMEM

from kexecemu.errors import KexecError
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.image.kimage import IMA, IND_DESTINATION, IND_DONE, IND_INDIRECTION, IND_SOURCE, Kimage
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL, PAGE_KERNEL_ROX
from kexecemu.machine.memory.descriptors import TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown

__all__ = ["ImagePages", "Relocation", "load_normal_segments", "prepare_relocation"]

_ENTRY = struct.Struct("<Q")


@shown()
@dataclass(frozen=True)
class Relocation:
    """What machine_kexec() needs for an ordinary image: physical addresses of code, tables and an empty table.

    phys_offset is what must be subtracted from a physical address to get the linear map's virtual one (mod 2^64).
    """

    kern_reloc: int
    ttbr0: int
    ttbr1: int
    zero_page: int
    phys_offset: int


class ImagePages:
    """kimage_alloc_page(): pages that no segment will overwrite, from the top of free memory down."""

    def __init__(self, image: Kimage, free_memory: Sequence[PhysRange], page_size: int) -> None:
        usable = subtract(free_memory, [segment.area for segment in image.segments])
        ranges = (
            range(align_up(one.start, page_size), one.end - page_size + 1, page_size) for one in usable[::-1]
        )
        self._pages = (page for pages in ranges for page in reversed(pages))

    def take(self, why: str) -> int:
        """The physical address of the next page; KexecError(ENOMEM) when none is left."""
        phys = next(self._pages, None)
        if phys is None:
            raise KexecError(ENOMEM, "kimage_alloc_page", f"no memory for {why}")
        return phys


class _EntryList:
    """kimage_add_entry() and kimage_terminate(): the list of pages, itself in pages that IND_INDIRECTION links."""

    def __init__(self, guest: GuestKernel, pages: ImagePages, page_size: int) -> None:
        self._guest = guest
        self._pages = pages
        self._page_size = page_size
        self.head = 0
        self._slot: int | None = None  # physical address of the next entry; None: it is image->head
        self._last: int | None = None  # of the last slot of the page, which is kept for the link

    def _store(self, value: int) -> None:
        if self._slot is None:
            self.head = value
        else:
            self._guest.ram.write(self._slot, _ENTRY.pack(value))

    def add(self, entry: int) -> None:
        if self._slot == self._last:
            table = self._pages.take("the list of pages")
            self._guest.ram.fill(table, self._page_size)
            self._store(table | IND_INDIRECTION)
            self._slot, self._last = table, table + self._page_size - _ENTRY.size
        self._store(entry)
        assert self._slot is not None
        self._slot += _ENTRY.size

    def terminate(self) -> None:
        self._store(IND_DONE)


def load_normal_segments(
    guest: GuestKernel, image: Kimage, free_memory: Sequence[PhysRange], page_size: int
) -> ImagePages:
    """Copy every page of the image to a page that waits for the reboot, and write the list that says where it goes.

    Sets image.head and image.ima_pages. Returns the source of further pages of the same kind. Raises
    KexecError(ENOMEM).
    """
    pages = ImagePages(image, free_memory, page_size)
    image.control_code_page = pages.take("control_code_buffer")
    entries = _EntryList(guest, pages, page_size)
    for segment in image.segments:
        content = segment.content()
        if segment.cma:  # kimage_load_cma_segment()
            guest.ram.write(segment.mem, content)
            continue
        entries.add(segment.mem | IND_DESTINATION)
        for at in range(0, segment.memsz, page_size):
            page = pages.take(f"segment {segment.name}")
            guest.ram.write(page, content[at : at + page_size])
            if segment.name == IMA:
                image.ima_pages.append(page)
            entries.add(page | IND_SOURCE)
    entries.terminate()
    image.head = entries.head
    return pages


def prepare_relocation(
    guest: GuestKernel, image: Kimage, pages: ImagePages, memory: Sequence[PhysRange], fmt: TableFormat
) -> Relocation:
    """machine_kexec_post_load(): relocation code in the control page, its identity map, a copy of the linear map."""
    page_size = fmt.granule.size
    ram, vmlinux = guest.ram, guest.vmlinux
    start = vmlinux.virt("__relocate_new_kernel_start")
    code = bytearray(guest.read_virt(start, vmlinux.virt("__relocate_new_kernel_end") - start))
    _ENTRY.pack_into(code, vmlinux.virt("relocate_page_size") - start, page_size)
    ram.write(image.control_code_page, code)

    def table() -> int:
        phys = pages.take("page tables")
        ram.fill(phys, page_size)
        return phys

    idmap = PageTables(ram, fmt, table(), table)
    code_page = image.control_code_page
    idmap.map(code_page, code_page, page_size, PAGE_KERNEL_ROX, blocks=False, contiguous=False)
    linear = PageTables(ram, fmt, table(), table)
    for area in memory:
        virt = guest.space.linear_virt(area.start)
        linear.map(virt, area.start, area.size, PAGE_KERNEL, blocks=True, contiguous=False)
    entry = vmlinux.virt("arm64_relocate_new_kernel") - start
    linear_offset = -guest.space.linear_virt(0) % (1 << 64)
    roots = idmap.root_phys, linear.root_phys, guest.phys("reserved_pg_dir")
    return Relocation(code_page + entry, *roots, linear_offset)

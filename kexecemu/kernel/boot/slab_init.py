"""The one slab that there is, of the tasks: its struct page, and the list of its free objects (mm/slub.c).

Its objects are in the image, where other kernels have none; readers find them by the linear map's address of that page.
"""

import struct

from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.boot.vmcoreinfo_lines import vmcoreinfo_lines
from kexecemu.kernel.memory.sparsemem import STRUCT_PAGE_SIZE, MemoryMap, section_size_bits, vmemmap_base

__all__ = ["slab_init"]

_SLAB_SIZE = 4096  # what vmlinux.lds lets the tasks have of their page
_NO_TYPE = 0xFFFFFFFF


def _slab_mark(config: KernelConfig) -> tuple[int, int]:
    """A slab's page flags and its page type: the one or the other says what it is, as VMCOREINFO does."""
    numbers = dict(
        what.split("=") for kind, what in vmcoreinfo_lines(config) if kind == "NUMBER" and "=" in what
    )
    if "PG_slab" in numbers:
        return 1 << int(numbers["PG_slab"]), _NO_TYPE
    return 0, int(numbers["PAGE_SLAB_MAPCOUNT_VALUE"]) % (1 << 32)


def _free_objects(guest: GuestKernel, start_phys: int, used: int, objects: int) -> int:
    """Link the objects behind those in use; the first one's virtual address, 0 where there is none."""
    layout, space, size = guest.vmlinux, guest.space, guest.vmlinux.sizeof("task_struct")
    cache_phys = guest.phys("task_struct_cache") + layout.offsetof("kmem_cache", "offset")
    pointer_at = guest.ram.read_u32(cache_phys)
    free = [start_phys + index * size for index in range(used, objects)]
    virts = [space.linear_virt(phys) for phys in free]
    for phys, following in zip(free, [*virts[1:], 0], strict=True):
        guest.ram.write_u64(phys + pointer_at, following)
    return virts[0] if virts else 0


def slab_init(guest: GuestKernel, config: KernelConfig, memory_map: MemoryMap) -> None:
    """Fill the slab's struct page and put it on its node's list; the memory map is there."""
    layout, space, page = guest.vmlinux, guest.space, config.page_size
    start_phys, size = guest.phys("task_slab_start"), layout.sizeof("task_struct")
    section_bits = section_size_bits(page)
    map_phys = memory_map.get(start_phys >> section_bits)
    if map_phys is None:
        return
    page_phys = map_phys + (start_phys & (1 << section_bits) - 1) // page * STRUCT_PAGE_SIZE
    page_virt = vmemmap_base(space, page) + start_phys // page * STRUCT_PAGE_SIZE
    used = (layout.virt("task_slab_end") - layout.virt("task_slab_start")) // size
    objects = _SLAB_SIZE // size
    flags, page_type = _slab_mark(config)
    members = layout.members("slab")
    node_virt = layout.virt("task_struct_node") + layout.offsetof("kmem_cache_node", "partial")
    slab = bytearray(STRUCT_PAGE_SIZE)
    struct.pack_into("<Q", slab, 0, flags)
    struct.pack_into("<Q", slab, members["slab_cache"], layout.virt("task_struct_cache"))
    struct.pack_into("<QQ", slab, members["slab_list"], node_virt, node_virt)
    struct.pack_into("<Q", slab, members["freelist"], _free_objects(guest, start_phys, used, objects))
    struct.pack_into("<Q", slab, members["counters"], used | objects << 16)
    struct.pack_into("<I", slab, members["__page_type"], page_type)
    struct.pack_into("<I", slab, members["__page_refcount"], 1)
    guest.ram.write(page_phys, slab)
    entry_virt = (page_virt + members["slab_list"]) % (1 << 64)
    guest.ram.write(space.virt_to_phys(node_virt), struct.pack("<QQ", entry_virt, entry_virt))

"""The one slab that there is, of the tasks: a page of its own, its struct page, and its free objects (mm/slub.c).

What is linked of the tasks is what they are at boot. They live in the linear map, where all is that is allocated.
"""

import struct
from functools import cache
from pathlib import Path

from kexecemu.kernel.base.vmlinux import GuestKernel, Vmlinux, load_vmlinux
from kexecemu.kernel.boot.struct_page import NO_TYPE, StructPages
from kexecemu.kernel.memory.sparsemem import STRUCT_PAGE_SIZE
from kexecemu.machine.ranges import PhysRange

__all__ = ["slab_init", "task_virt"]

_SLAB_SIZE = 4096  # of a larger page no more is used
_WRITABLE = 2  # PF_W


def _linked(vmlinux: Vmlinux) -> range:
    """Virtual addresses of the tasks as they are linked."""
    return range(vmlinux.virt("task_slab_start"), vmlinux.virt("task_slab_end"))


@cache
def _pointers(path: Path) -> tuple[tuple[int, int], ...]:
    """(virtual address, value) of each pointer in the image's data that leads to a task, or to a member of one."""
    vmlinux = load_vmlinux(path)
    linked = _linked(vmlinux)
    return tuple(
        (segment.vaddr + 8 * index, value)
        for segment in vmlinux.elf.segments
        if segment.flags & _WRITABLE
        for index, (value,) in enumerate(struct.iter_unpack("<Q", segment.data[: len(segment.data) & -8]))
        if value in linked
    )


def task_virt(guest: GuestKernel, slab: PhysRange, name: str) -> int:
    """The virtual address of a task by its symbol's name; init_task and the idle tasks are where they are linked."""
    linked, virt = _linked(guest.vmlinux), guest.vmlinux.virt(name)
    return virt - linked.start + guest.space.linear_virt(slab.start) if virt in linked else virt


def _move_tasks(guest: GuestKernel, slab: PhysRange) -> None:
    """As if fork() had made them there: nobody has a pointer to where they were linked, and there is nothing left."""
    space, start, size = guest.space, guest.phys("task_slab_start"), len(_linked(guest.vmlinux))
    delta = space.linear_virt(slab.start) - guest.vmlinux.virt("task_slab_start")
    for virt, value in _pointers(guest.vmlinux.path):
        guest.ram.write_u64(space.virt_to_phys(virt), (value + delta) % (1 << 64))
    guest.ram.fill(slab.start, slab.size)
    guest.ram.write(slab.start, guest.ram.read(start, size))
    guest.ram.fill(start, size)


def _free_objects(guest: GuestKernel, start_phys: int, used: int, objects: int) -> int:
    """Link the objects behind those in use, of which there are some; the first one's virtual address."""
    layout, space, size = guest.vmlinux, guest.space, guest.vmlinux.sizeof("task_struct")
    cache_phys = guest.phys("task_struct_cache") + layout.offsetof("kmem_cache", "offset")
    pointer_at = guest.ram.read_u32(cache_phys)
    free = [start_phys + index * size for index in range(used, objects)]
    virts = [space.linear_virt(phys) for phys in free]
    for phys, following in zip(free, [*virts[1:], 0], strict=True):
        guest.ram.write_u64(phys + pointer_at, following)
    return virts[0]


def slab_init(guest: GuestKernel, pages: StructPages, slab: PhysRange, page_size: int) -> None:
    """Move the tasks into a free page (physical), fill its struct page and put it on its node's list."""
    layout, members = guest.vmlinux, guest.vmlinux.members("slab")
    _move_tasks(guest, slab)
    used, objects = (size // layout.sizeof("task_struct") for size in (len(_linked(layout)), _SLAB_SIZE))
    # The one or the other says that it is a slab.
    flags, kind = 1 << pages.numbers["PG_slab"] if "PG_slab" in pages.numbers else 0, NO_TYPE
    kind = pages.numbers.get("PAGE_SLAB_MAPCOUNT_VALUE", kind) % (1 << 32)
    node_virt = layout.virt("task_struct_node") + layout.offsetof("kmem_cache_node", "partial")
    page = bytearray(STRUCT_PAGE_SIZE)
    struct.pack_into("<Q", page, 0, flags)
    struct.pack_into("<Q", page, members["slab_cache"], layout.virt("task_struct_cache"))
    struct.pack_into("<QQ", page, members["slab_list"], node_virt, node_virt)
    struct.pack_into("<Q", page, members["freelist"], _free_objects(guest, slab.start, used, objects))
    struct.pack_into("<Q", page, members["counters"], used | objects << 16)
    struct.pack_into("<I", page, members["__page_type"], kind)
    struct.pack_into("<I", page, members["__page_refcount"], 1)
    pfn = slab.start // page_size
    pages.write(pfn, bytes(page))
    entry_virt = (pages.virt(pfn) + members["slab_list"]) % (1 << 64)
    guest.ram.write(guest.space.virt_to_phys(node_virt), struct.pack("<QQ", entry_virt, entry_virt))

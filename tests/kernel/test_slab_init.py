"""The slab of the tasks in guest memory, and the timers and interrupts that are there for a dump's reader."""

from __future__ import annotations

import struct

import pytest
from kernel_bench import boot

from kexecemu.kernel.base.config import Era
from kexecemu.kernel.memory.sparsemem import vmemmap_base
from kexecemu.kernel.model import KernelModel

RELEASES = [era.value for era in Era]
PAGES = ("ARM64_4K_PAGES", "ARM64_16K_PAGES", "ARM64_64K_PAGES")


def slab_page(kernel: KernelModel) -> tuple[int, bytes]:
    """The struct page of the tasks' page, by the page tables: its virtual address, and what it holds."""
    phys = kernel.free_memory.slab.start
    virt = vmemmap_base(kernel.space, kernel.page_size) + phys // kernel.page_size * 64
    walk = kernel.tables.walk(virt)
    assert walk.phys is not None
    return virt, bytes(kernel.ram.read(walk.phys, 64))


def allocated(kernel: KernelModel) -> set[int]:
    """pids of the objects that are not on the free list, as slab_cache_for_each_allocated_object() finds them."""
    layout, (_, slab) = kernel.guest.vmlinux, slab_page(kernel)
    size = layout.sizeof("task_struct")
    offset = kernel.guest.read_u32("task_struct_cache", layout.offsetof("kmem_cache", "offset"))
    (counters,) = struct.unpack_from("<Q", slab, layout.offsetof("slab", "counters"))
    (free,) = struct.unpack_from("<Q", slab, layout.offsetof("slab", "freelist"))
    base = kernel.space.linear_virt(kernel.free_memory.slab.start)
    objects = {base + index * size for index in range(counters >> 16 & 0x7FFF)}
    on_list = set()
    while free:
        assert free in objects - on_list
        on_list.add(free)
        free = int.from_bytes(kernel.guest.read_virt(free + offset, 8), "little")
    assert len(objects - on_list) == counters & 0xFFFF
    pid = layout.offsetof("task_struct", "pid")
    return {int.from_bytes(kernel.guest.read_virt(one + pid, 4), "little") for one in objects - on_list}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("page", PAGES)
def test_the_tasks_are_objects_of_a_slab(release: str, page: str) -> None:
    with boot(era=release, options={page: "y"}) as kernel:
        assert allocated(kernel) == {1, 2, 9, 57}
        virt, slab = slab_page(kernel)
        layout = kernel.guest.vmlinux
        # What marks it is what VMCOREINFO says.
        said = dict(line.split("=") for line in kernel.vmcoreinfo().decode().splitlines())
        (flags,) = struct.unpack_from("<Q", slab)
        (kind,) = struct.unpack_from("<i", slab, layout.offsetof("page", "_mapcount"))
        if "NUMBER(PG_slab)" in said:
            assert (flags, kind) == (1 << int(said["NUMBER(PG_slab)"]), -1)
        else:
            assert (flags, kind) == (0, int(said["NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)"]))
        # It is on its node's list of partial slabs, alone.
        partial = layout.offsetof("kmem_cache_node", "partial")
        entry = virt + layout.offsetof("slab", "slab_list")
        assert [kernel.guest.read("task_struct_node", partial + at) for at in (0, 8)] == [entry, entry]
        members = layout.members("slab")
        assert struct.unpack_from("<Q", slab, members["slab_cache"]) == (layout.virt("task_struct_cache"),)
        assert struct.unpack_from("<I", slab, members["__page_refcount"]) == (1,)
        head = layout.virt("task_struct_node") + partial
        assert struct.unpack_from("<QQ", slab, layout.offsetof("slab", "slab_list")) == (head, head)


def test_page_flags_of_the_debug_information_are_those_of_vmcoreinfo() -> None:
    from elftools.elf.elffile import ELFFile

    for release in RELEASES:
        with boot(era=release) as kernel, kernel.guest.vmlinux.path.open("rb") as file:
            said = dict(line.split("=") for line in kernel.vmcoreinfo().decode().splitlines())
            found = {
                die.attributes["DW_AT_name"].value.decode(): die.attributes["DW_AT_const_value"].value
                for unit in ELFFile(file).get_dwarf_info().iter_CUs()
                for die in unit.iter_DIEs()
                if die.tag == "DW_TAG_enumerator"
                and die.attributes["DW_AT_name"].value[:3] in (b"PG_", b"PGT")
            }
            for name in ("PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_hwpoison"):
                assert found[name] == int(said[f"NUMBER({name})"]), (release, name)
            assert 1 << found["PG_head"] == int(said["NUMBER(PG_head_mask)"])


@pytest.mark.parametrize("release", ["6.1", "6.5", "6.12", "7.3"])
def test_a_timer_is_queued_where_its_wheel_says(release: str) -> None:
    with boot(era=release, cpus=2) as kernel:
        layout, guest = kernel.guest.vmlinux, kernel.guest
        for cpu, queued in ((0, True), (1, False)):
            base = layout.virt("timer_bases") + guest.read("__per_cpu_offset", 8 * cpu)
            read = lambda name, at=0, base=base: int.from_bytes(  # noqa: E731
                guest.read_virt((base + layout.offsetof("timer_base", name) + at) % (1 << 64), 8), "little"
            )
            assert read("cpu") & 0xFFFFFFFF == cpu
            buckets = [index for index in range(512) if read("vectors", 8 * index)]
            pending = [n for n in range(512) if read("pending_map", n // 64 * 8) >> n % 64 & 1]
            assert buckets == pending and len(buckets) == queued
            if queued:
                assert 64 <= buckets[0] < 128  # five seconds are on the second level
                assert read("vectors", 8 * buckets[0]) == layout.virt("wb_timer")
                assert guest.read("wb_timer", layout.offsetof("timer_list", "expires")) == read("clk") + 500

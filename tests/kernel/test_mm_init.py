"""What memory management leaves in guest memory: the memory map, sections, zones, totals, and the wall clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from kernel_bench import GIB, IMAGE, INITRD, MIB, boot

from kexecemu.errors import InputError
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.free_area import zone_sizes
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.sparsemem import sparse_init
from kexecemu.kernel.memory.zones import arm64_dma_phys_limit
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.ranges import PhysRange

GRANULES = {4096: "ARM64_4K_PAGES", 16384: "ARM64_16K_PAGES", 65536: "ARM64_64K_PAGES"}
# arch/arm64: -(1 << (VA_BITS - VMEMMAP_SHIFT)) with VMEMMAP_SHIFT = PAGE_SHIFT - 6.
VMEMMAP_START = {4096: 0xFFFFFC0000000000, 16384: 0xFFFFFF0000000000, 65536: 0xFFFFFFC000000000}
SECTION_BITS = {4096: 27, 16384: 27, 65536: 29}
# SECTION_MARKED_PRESENT|SECTION_HAS_MEM_MAP|SECTION_IS_ONLINE|SECTION_IS_EARLY: what a section from boot has.
EARLY = 0xF


def page_virt(kernel: KernelModel, phys: int) -> int:
    """pfn_to_page() of a physical address; RAM starts at 1 GiB here, so memstart_addr is 1 GiB."""
    page = kernel.config.page_size
    return VMEMMAP_START[page] + (phys - GIB) // page * 64


def sections(kernel: KernelModel) -> dict[int, int]:
    """section_mem_map of every section that has one, read by way of the roots in guest memory."""
    page = kernel.config.page_size
    roots_phys = kernel.space.virt_to_phys(kernel.guest.read("mem_section"))
    per_root = page // 16
    found = {}
    for root in range((1 << 48 - SECTION_BITS[page]) // per_root):
        table = kernel.ram.read_u64(roots_phys + 8 * root)
        for index in range(per_root if table else 0):
            entry = kernel.ram.read_u64(kernel.space.virt_to_phys(table) + 16 * index)
            if entry:
                found[root * per_root + index] = entry
    return found


def zone(kernel: KernelModel, name: str) -> dict[str, int]:
    """The members of the zone with that name, found by the name in guest memory."""
    layout = kernel.guest.vmlinux
    members = ("zone_start_pfn", "spanned_pages", "present_pages", "managed_pages")
    for index in range(4):
        base = layout.offsetof("pglist_data", "node_zones") + index * layout.sizeof("zone")
        virt = kernel.guest.read("contig_page_data", base + layout.offsetof("zone", "name"))
        if kernel.guest.string(virt) == name:
            return {
                member: kernel.guest.read("contig_page_data", base + layout.offsetof("zone", member))
                for member in members
            }
    raise AssertionError(f"no zone {name}")


def node(kernel: KernelModel, member: str) -> int:
    return kernel.guest.read("contig_page_data", kernel.guest.vmlinux.offsetof("pglist_data", member))


def test_the_symbol_of_mem_section_is_the_array_and_not_the_pointer_to_it() -> None:
    kernel = boot()
    text = kernel.vmcoreinfo().decode()
    assert f"SYMBOL(mem_section)={kernel.guest.read('mem_section'):x}\n" in text
    assert f"SYMBOL(mem_section)={kernel.guest.vmlinux.virt('mem_section'):x}\n" not in text


# -- struct pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", GRANULES)
def test_every_section_with_memory_leads_to_its_struct_pages(page: int) -> None:
    # Memory from 1 GiB, and some beyond the first root of sections with every granule.
    ram = [PhysRange.of(GIB, GIB), PhysRange.of(600 * GIB, 3 * MIB)]
    kernel = boot(ram=ram, options={GRANULES[page]: "y"}, cmdline="rodata=on")
    bits = SECTION_BITS[page]
    found = sections(kernel)
    assert sorted(found) == [*range(GIB >> bits, 2 * GIB >> bits), 600 * GIB >> bits]
    assert kernel.guest.read("__highest_present_section_nr") == 600 * GIB >> bits
    text = kernel.vmcoreinfo().decode()
    assert f"\nNUMBER(SECTION_SIZE_BITS)={bits}\n" in text
    assert f"\nLENGTH(mem_section)={(1 << 48 - bits) // (page // 16)}\n" in text
    assert f"\nNUMBER(VMEMMAP_START)={VMEMMAP_START[page]:#x}\n" in text
    for number, entry in found.items():
        assert entry & 0x3F == EARLY
        first_pfn = (number << bits) // page
        virt = (entry & ~0x3F) + 64 * first_pfn
        assert virt == page_virt(kernel, number << bits)
        # The whole of its part of the array is mapped, writable, to RAM that nobody else may be given.
        end = virt + (1 << bits) // page * 64
        for at in (virt, end - 8):
            walk = kernel.tables.walk(at)
            assert walk.phys is not None
            assert walk.level == (2 if page == 4096 else 3)
            assert not any(area.start <= walk.phys < area.end for area in kernel.arch.memblock.free_ranges())


@pytest.mark.parametrize("page", GRANULES)
def test_the_tables_of_the_array_are_the_pages_set_aside_for_them_upper_ones_first(page: int) -> None:
    """No page more, none less: memblock gives the highest first, and an upper table is asked for before a lower."""
    ram = [PhysRange.of(GIB, GIB), PhysRange.of(600 * GIB, 3 * MIB)]
    kernel = boot(ram=ram, options={GRANULES[page]: "y"}, cmdline="rodata=on")
    bits = SECTION_BITS[page]
    tables: dict[int, None] = {}
    for number in sections(kernel):
        for at in (0, (1 << bits) // page * 64 - 8):
            steps = kernel.tables.walk(page_virt(kernel, number << bits) + at).steps
            tables |= dict.fromkeys(entry_phys & -page for _, entry_phys, _ in steps)
    tables = {
        phys: None for phys in tables if phys not in kernel.guest.area
    }  # the root, and what is linked below it
    assert list(tables) == kernel.arch.sparse.table_pages == sorted(tables, reverse=True)


def test_the_array_has_holes_where_there_is_no_memory() -> None:
    kernel = boot(ram=[PhysRange.of(GIB, GIB), PhysRange.of(4 * GIB, GIB)])
    for phys, mapped in ((GIB, True), (2 * GIB, False), (4 * GIB, True), (5 * GIB, False)):
        assert (kernel.tables.walk(page_virt(kernel, phys)).phys is not None) is mapped


def test_the_cpu_writes_a_struct_page_where_readers_look_for_it() -> None:
    kernel = boot()
    virt = page_virt(kernel, 0x50000000)
    assert kernel.stray_write_virt(virt, b"\x12\x34\x56\x78", 4)
    phys = kernel.tables.walk(virt).phys
    assert phys is not None and kernel.ram.read(phys, 4) == b"\x12\x34\x56\x78"


def test_no_block_of_the_array_is_larger_than_a_section_s_part() -> None:
    """vmemmap_populate() has PMD blocks and no larger ones: 64 GiB of RAM have 1 GiB of struct pages."""
    kernel = boot(ram="64G", cmdline="rodata=on")
    for gib in range(64):
        assert kernel.tables.walk(page_virt(kernel, (1 + gib) * GIB)).level == 2


@pytest.mark.parametrize("granule", ["ARM64_4K_PAGES", "ARM64_16K_PAGES"])
def test_three_tebibytes_cost_the_host_little_memory(granule: str) -> None:
    kernel = boot(ram="3T", cmdline="rodata=on", options={granule: "y"})
    assert len(sections(kernel)) == 3 << 40 >> 27
    touched = sum(area.size for area in kernel.ram.data_ranges(kernel.ram.banks[0]))
    # With 16 KiB the array, of 12 GiB, is mapped page by page: 6 MiB of tables.
    assert touched < 16 * MIB


def test_where_no_piece_is_large_enough_the_map_is_allocated_section_by_section() -> None:
    memblock = Memblock()
    memblock.add(PhysRange.of(GIB, 512 * MIB))  # four sections, 2 MiB each
    # Three places for one, none for two.
    free = [PhysRange.of(GIB + at * MIB, 2 * MIB) for at in (16, 64, 128)]
    memblock.reserve(PhysRange.of(GIB, 512 * MIB))
    for one in free:
        memblock.free(one)
    # The highest first; the last section finds none and is left out.
    config = KernelConfig("6.4")
    small = PhysRange.of(GIB + 256 * MIB, 512 << 10)  # for mem_section[], tables and the like
    memblock.free(small)
    space = AddressSpace(GIB, 0xFFFF800008000000, GIB, 32 * MIB)
    assert sparse_init(memblock, space, config).memory_map == {
        8: GIB + 128 * MIB,
        9: GIB + 64 * MIB,
        10: GIB + 16 * MIB,
    }
    assert all(small.covers(one) for one in memblock.free_ranges())


def test_with_larger_pages_a_section_s_part_of_the_map_is_aligned_to_a_page_alone() -> None:
    """vmemmap_populate_basepages() has it page by page; with pages of 4 KiB it is a block, or pieces aligned alike."""
    memblock = Memblock()
    memblock.add(PhysRange.of(GIB, 128 * MIB))  # one section, of 512 KiB
    memblock.reserve(PhysRange.of(GIB, 128 * MIB))
    place, rest = PhysRange.of(GIB + 16 * MIB + 16384, 512 << 10), PhysRange.of(GIB + 64 * MIB, 256 << 10)
    for one in (place, rest):
        memblock.free(one)
    space = AddressSpace(GIB, 0xFFFF800008000000, GIB, 32 * MIB)
    config = KernelConfig("6.4", options={"ARM64_16K_PAGES": "y"})
    assert sparse_init(memblock, space, config).memory_map == {8: place.start}


def test_the_page_tables_of_the_map_are_no_part_of_the_linear_map_s_count() -> None:
    kernel = boot(cmdline="crashkernel=128M rodata=on")
    table = kernel.tables.walk(page_virt(kernel, GIB)).entry_phys & ~0xFFF
    assert table not in kernel.tables.tables
    region = kernel.crashk_res
    assert region is not None and not region.start <= table < region.end


@pytest.mark.parametrize("what", ["mem_section[]", "tables"])
def test_without_room_for_what_leads_to_the_map_the_boot_is_refused(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, mapped = Memblock.phys_alloc_range, []

    def full(self: Memblock, size: int, align: int, start: int = 0, end: int = 0, **on: Any) -> int:
        if (size, align) == (4096, 64) and what == "mem_section[]":
            return 0
        if mapped and align == 4096:
            return 0
        phys = allocate(self, size, align, start, end, **on)
        mapped.extend([phys] if align == 2 * MIB else [])
        return phys

    monkeypatch.setattr(Memblock, "phys_alloc_range", full)
    with pytest.raises(InputError, match="its own memory map"):
        boot(cmdline="crashkernel=128M rodata=on")


# -- zones and totals --------------------------------------------------------------------------------------------------


def test_the_zones_are_those_of_debian_s_kernel_on_a_gibibyte() -> None:
    """It said: DMA [mem 0x40000000-0x7fffffff], DMA32 empty, Normal empty; 1048576K of memory."""
    kernel = boot(ram="1G")
    dma = zone(kernel, "DMA")
    assert dma["zone_start_pfn"] == 0x40000
    assert dma["spanned_pages"] == dma["present_pages"] == 1048576 // 4
    assert zone(kernel, "DMA32")["spanned_pages"] == zone(kernel, "Normal")["spanned_pages"] == 0
    assert node(kernel, "nr_zones") & 0xFFFFFFFF == 1


def test_the_zones_are_those_of_a_kernel_without_dma_zones() -> None:
    """6.1.192 said: Normal [mem 0x40000000-0x6fffffff]; 786432K of memory; its zone lists had 193536 pages in total."""
    kernel = boot(ram="768M", cmdline="crashkernel=96M", options={"ZONE_DMA": "n", "ZONE_DMA32": "n"})
    normal = zone(kernel, "Normal")
    assert normal["zone_start_pfn"] == 0x40000
    assert normal["spanned_pages"] == normal["present_pages"] == 786432 // 4
    assert zone(kernel, "DMA")["spanned_pages"] == 0
    assert node(kernel, "nr_zones") & 0xFFFFFFFF == 3
    # What it counted there are present pages less those of the memory map.
    assert normal["present_pages"] - len(sections(kernel)) * 2 * MIB // 4096 == 193536


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # (first frame, spanned, present) in GiB
        ({}, [(1, 3, 1), (0, 0, 0), (4, 6, 2)]),
        ({"ZONE_DMA": "n", "ZONE_DMA32": "y"}, [(0, 0, 0), (1, 3, 1), (4, 6, 2)]),
        ({"ZONE_DMA": "n"}, [(0, 0, 0), (0, 0, 0), (1, 9, 3)]),
    ],
)
def test_a_zone_spans_the_holes_in_it(options: dict[str, str], expected: list[tuple[int, int, int]]) -> None:
    memblock = Memblock()
    memblock.add(PhysRange.of(GIB, GIB))
    memblock.add(PhysRange.of(8 * GIB, 2 * GIB))
    config = KernelConfig("6.4", options=options)
    zones = zone_sizes(config, memblock, arm64_dma_phys_limit(config, memblock))
    frames = GIB // 4096
    assert [
        (one.start_pfn // frames, one.spanned_pages // frames, one.present_pages // frames) for one in zones
    ] == [*expected, (0, 0, 0)]


def test_managed_pages_and_totals_agree_with_what_memblock_left() -> None:
    kernel = boot(ram=[PhysRange.of(GIB, GIB), PhysRange.of(4 * GIB, GIB)], cmdline="crashkernel=128M")
    managed = {name: zone(kernel, name)["managed_pages"] for name in ("DMA", "DMA32", "Normal", "Movable")}
    assert managed["DMA"] and managed["Normal"] and not managed["DMA32"] and not managed["Movable"]
    total = kernel.guest.read("_totalram_pages")
    assert total == sum(managed.values()) == kernel.total_ram_pages
    # At least the crash region, the memory map and the kernel are missing.
    gone = 128 * MIB + 16 * 2 * MIB + kernel.guest.area.size
    assert total < (2 * GIB - gone) // 4096
    assert total > (2 * GIB - gone - 32 * MIB) // 4096


def test_the_limits_of_memory_are_published() -> None:
    kernel = boot(ram=[PhysRange.of(GIB, GIB), PhysRange.of(4 * GIB, GIB)])
    assert kernel.guest.read("min_low_pfn") == GIB // 4096
    assert kernel.guest.read("max_pfn") == kernel.guest.read("max_low_pfn") == 5 * GIB // 4096
    assert kernel.guest.read("high_memory") == 0xFFFF000000000000 + 4 * GIB
    assert node(kernel, "node_start_pfn") == GIB // 4096
    assert node(kernel, "node_spanned_pages") == 4 * GIB // 4096
    assert node(kernel, "node_present_pages") == 2 * GIB // 4096


# -- time ----------------------------------------------------------------------------------------------------


def crashtime(kernel: KernelModel) -> int:
    return int(kernel.vmcoreinfo().decode().split("CRASHTIME=")[1])


def test_a_crash_happens_on_the_day_that_linux_6_1_came_out() -> None:
    kernel = boot()
    kernel.kexec_file_load(IMAGE, INITRD, "console=ttyAMA0")
    assert "CRASHTIME" not in kernel.vmcoreinfo().decode()
    kernel.crash()
    when = datetime.fromtimestamp(crashtime(kernel), UTC)
    assert (when.year, when.month, when.day) == (2022, 12, 11)
    xtime_sec = kernel.guest.vmlinux.offsetof("timekeeper", "xtime_sec")
    assert kernel.guest.read("shadow_timekeeper", xtime_sec) == crashtime(kernel)
    assert kernel.guest.read("tk_core", 8 + xtime_sec) == crashtime(kernel)


def test_the_clock_goes_with_virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = boot()
    xtime_sec = kernel.guest.vmlinux.offsetof("timekeeper", "xtime_sec")
    before = kernel.guest.read("shadow_timekeeper", xtime_sec)
    # Three seconds of instructions are too many to run.
    monkeypatch.setattr(KernelModel, "now_ns", property(lambda self: self.board.instructions + 3_000_000_000))
    kernel.kexec_file_load(IMAGE, INITRD, "console=ttyAMA0")
    kernel.crash()
    assert crashtime(kernel) == before + 3

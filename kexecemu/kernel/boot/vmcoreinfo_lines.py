"""Which lines VMCOREINFO has in which release and configuration, in the kernel's order.

Followed: crash_save_vmcoreinfo_init() of kernel/crash_core.c, since 6.9 of kernel/vmcore_info.c;
log_buf_vmcoreinfo_setup() of kernel/printk/printk.c; arch_crash_save_vmcoreinfo() of arm64. Equal to what 6.1, 6.12
and 7.3 wrote on real machines; what is between them is dated by the commits.
"""

from collections.abc import Iterator

from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.era import parse_release

__all__ = ["vmcoreinfo_lines", "vmcoreinfo_numbers"]

# A kind and what of it there is. In brackets before it: from which release on, and up to (not with) which; a
# configuration's option, or "!" and one. A number that is not the same everywhere is found out by vmcoreinfo.py.
_LINES = """
SYMBOL init_uts_ns
OFFSET uts_namespace.name
SYMBOL node_online_map swapper_pg_dir _stext
[-6.9] SYMBOL vmap_area_list
[6.9-] NUMBER VMALLOC_START
[!NUMA] SYMBOL mem_map contig_page_data
[6.8-] SYMBOL vmemmap
SYMBOL mem_section
LENGTH mem_section
SIZE mem_section
OFFSET mem_section.section_mem_map
NUMBER SECTION_SIZE_BITS MAX_PHYSMEM_BITS
SIZE page pglist_data zone free_area list_head nodemask_t
OFFSET page.flags page._refcount page.mapping page.lru page._mapcount page.private
[-6.3] OFFSET page.compound_dtor page.compound_order
[6.3-6.6] OFFSET folio._folio_dtor folio._folio_order
[-7.0] OFFSET page.compound_head
[7.0-] OFFSET page.compound_info
OFFSET pglist_data.node_zones pglist_data.nr_zones
OFFSET pglist_data.node_start_pfn pglist_data.node_spanned_pages pglist_data.node_id zone.free_area zone.vm_stat
OFFSET zone.spanned_pages free_area.free_list list_head.next list_head.prev
[-6.9] OFFSET vmap_area.va_start vmap_area.list
LENGTH zone.free_area
SYMBOL prb printk_rb_static clear_seq
SIZE printk_ringbuffer
OFFSET printk_ringbuffer.desc_ring printk_ringbuffer.text_data_ring printk_ringbuffer.fail
SIZE prb_desc_ring
OFFSET prb_desc_ring.count_bits prb_desc_ring.descs prb_desc_ring.infos prb_desc_ring.head_id
OFFSET prb_desc_ring.tail_id
SIZE prb_desc
OFFSET prb_desc.state_var prb_desc.text_blk_lpos
SIZE prb_data_blk_lpos
OFFSET prb_data_blk_lpos.begin prb_data_blk_lpos.next
SIZE printk_info
OFFSET printk_info.seq printk_info.ts_nsec printk_info.text_len printk_info.caller_id printk_info.dev_info
SIZE dev_printk_info
OFFSET dev_printk_info.subsystem
LENGTH printk_info_subsystem
OFFSET dev_printk_info.device
LENGTH printk_info_device
SIZE prb_data_ring
OFFSET prb_data_ring.size_bits prb_data_ring.data prb_data_ring.head_lpos prb_data_ring.tail_lpos
SIZE atomic_long_t
OFFSET atomic_long_t.counter
SIZE latched_seq
OFFSET latched_seq.val
LENGTH free_area.free_list
NUMBER NR_FREE_PAGES=0
[-6.6] NUMBER PG_lru=4 PG_private=13 PG_swapcache=10 PG_swapbacked=19 PG_slab=9
[6.6-6.10] NUMBER PG_lru=5 PG_private=15 PG_swapcache=12 PG_swapbacked=19 PG_slab=11
[6.10-] NUMBER PG_lru=5 PG_private=14 PG_swapcache=10 PG_swapbacked=17 PAGE_SLAB_MAPCOUNT_VALUE=-184549376
[-6.10 MEMORY_FAILURE] NUMBER PG_hwpoison=22
[6.10-6.14 MEMORY_FAILURE] NUMBER PG_hwpoison=20
[6.14- MEMORY_FAILURE] NUMBER PG_hwpoison=21
[-6.6] NUMBER PG_head_mask=65536
[6.6-] NUMBER PG_head_mask=64
[-6.10] NUMBER PAGE_BUDDY_MAPCOUNT_VALUE=-129
[-6.6 HUGETLB_PAGE] NUMBER HUGETLB_PAGE_DTOR=2
[6.6-6.9 HUGETLB_PAGE] NUMBER PG_hugetlb=8
[-6.9 HUGETLB_PAGE] NUMBER PAGE_OFFLINE_MAPCOUNT_VALUE=-257
[6.9-6.10] NUMBER PAGE_HUGETLB_MAPCOUNT_VALUE=-2049 PAGE_OFFLINE_MAPCOUNT_VALUE=-257
[6.10-] NUMBER PAGE_BUDDY_MAPCOUNT_VALUE=-268435456 PAGE_HUGETLB_MAPCOUNT_VALUE=-201326592
[6.10-] NUMBER PAGE_OFFLINE_MAPCOUNT_VALUE=-251658240
SYMBOL kallsyms_names kallsyms_num_syms kallsyms_token_table kallsyms_token_index kallsyms_offsets
[-7.0] SYMBOL kallsyms_relative_base
NUMBER VA_BITS MODULES_VADDR MODULES_END
[-6.9] NUMBER VMALLOC_START
NUMBER VMALLOC_END VMEMMAP_START VMEMMAP_END kimage_voffset PHYS_OFFSET TCR_EL1_T1SZ
KERNELOFFSET -
NUMBER KERNELPACMASK
"""


def _holds(condition: str, config: KernelConfig) -> bool:
    """Is a line with this condition there?"""
    for word in condition.split():
        since, dash, until = word.partition("-")
        if dash:
            release = config.release.since
            if (since and release < parse_release(since)) or (until and release >= parse_release(until)):
                return False
        elif config.enabled(word.removeprefix("!")) == word.startswith("!"):
            return False
    return True


def vmcoreinfo_lines(config: KernelConfig) -> Iterator[tuple[str, str]]:
    """(kind, what) of each line between the first three and the end, where what may be a number and its value."""
    for row in _LINES.strip().splitlines():
        condition, bracket, rest = row.rpartition("] ")
        if _holds(condition.lstrip("["), config):
            kind, *names = (rest if bracket else row).split()
            yield from ((kind, what) for what in names)


def vmcoreinfo_numbers(config: KernelConfig) -> dict[str, int]:
    """The numbers that are the same in all kernels of a release and configuration: bits and types of pages."""
    found = (what.split("=") for kind, what in vmcoreinfo_lines(config) if kind == "NUMBER" and "=" in what)
    return {name: int(value) for name, value in found}

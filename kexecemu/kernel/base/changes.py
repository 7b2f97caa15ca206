"""What changed when in arm64's kexec: every rule that is not the same in all eras, and since which release."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from kexecemu.shown import shown

__all__ = ["CHANGES", "Change", "Rules"]


@shown()
@dataclass(frozen=True)
class Rules:
    """What is not the same in every era; the defaults are what the oldest one does.

    protects_by_pte            arch_kexec_protect_crashkres() exists
    early_reservation          crashkernel= is reserved before the linear map where there are no DMA zones, and decides
                               how that is built
    falls_back_high            crashkernel=X that does not fit below the DMA limit is looked for above it; and where no
                               ,low is given there are 128 MiB of low memory
    falls_back_low             crashkernel=X,high is looked for above the limit, then below; @offset has own words
    low_where_it_reaches_over  low memory is left out if the region begins so far below the limit, else if below it
    kfence_early_pool          KFENCE's pool is set up before the linear map and has pages of its own; else KFENCE needs
                               base pages all over, whatever its interval
    generic_reservation        reserve_crashkernel_generic(): the size is not rounded to whole pages
    range_prefixes             what is before "Memory value expected" for the size in a list of ranges, and its offset
    refuses_all_of_ram         a region as large as all RAM is not looked for
    gives_up                   a reservation that fails where there are no DMA zones ends
    suffixes                   which crashkernel= options are not of the plain kind
    counts_low_region          crash_get_memory_size() and crash_shrink_memory() know crashk_low_res
    top_down_skips_last_page   locate_mem_hole_top_down() starts at end - size with an inclusive end
    text_alias_starts_at_text  the read-only alias of the kernel text in the linear map starts at _text, not at _stext
    ima_in_crash_images        ima_add_kexec_buffer() adds its segment to crash images too
    ima_filled_at_reboot       IMA's segment is reserved at the load and filled at the reboot, no digest covers it
    load_flags                 KEXEC_FLAGS; arm64 has no use for those of crash hotplug, and does not know
                               KEXEC_PRESERVE_CONTEXT
    file_load_flags            KEXEC_FILE_FLAGS
    ima_extra_memory           IMA's segment has room for IMA_KEXEC_EXTRA_MEMORY_KB
    kho                        CONFIG_KEXEC_HANDOVER is to be had
    kho_aligns_by_buddy        scratch areas of KHO are aligned to the largest block of the buddy allocator, not of CMA
    segments_in_cma            kexec_alloc_contig(): segments of ordinary images are in the CMA area where they fit
    skips_checksum             ordinary images that KHO, or CMA alone, keeps safe have a digest of nothing
    garbage_in_kexec_buf       which functions leave kexec_buf.random as the stack has it
    reserves_before_memmap     the memory map and the zones come after the reservation
    reserves_cma               crashkernel=X,cma is reserved
    dm_crypt_keys              crash_load_dm_crypt_keys() is called by load_other_segments()
    rodata_noalias             rodata=on is what full was, noalias what on was; the default is on
    splits_live                levels of FEAT_BBM at which blocks of the linear map are split while it is in use
    marks_invalid              what set_memory_valid() makes invalid has PTE_PRESENT_INVALID, which is the bit nG
    sysfs_kexec                /sys/kernel/kexec/ has what lies in /sys/kernel/kexec_* else, and crash_cma_ranges
    tells_uid                  dump_stack() says which user is running
    tells_preemption           dump_stack() says whether the kernel is preemptible
    marks_trace                the first line of a call trace says how it was come by
    panic_force_cpu            panic_force_cpu= is known
    nokaslr_field              the field of a software feature that nokaslr sets
    stop_retries               CPUs that do not hear the stop IPI get a pseudo-NMI, and those alone that then are up are
                               told of as failed, not all that were asked
    idmap_tables               pages that create_idmap() takes from memblock
    data_alias                 what the linear map's alias of the kernel's data and bss is once it is up: writable,
                               read-only or invalid; not writable, image and alias are mapped first, as all else is
    of_property_size           sizeof(struct property), in bytes
    reserved_mem_size          sizeof(struct reserved_mem); 0: the array is in the image
    numa_distances             the table of distances between nodes is there from the start
    node_cpumasks              the masks of the nodes' CPUs are allocated: Debian has 512 CPUs from then on
    cma_for_each_node          each node has a CMA area as large as the default one (CMA_SIZE_PERNUMA)
    pglist_data_size           sizeof(pg_data_t) of a kernel with NUMA
    zone_dma_limit             where ZONE_DMA ends is an address, not a number of bits
    bus_has_cells              a node without #address-cells of its own is no bus
    checks_dma_ranges          of_pci_range_parser refuses cells that are none
    section_usage_bits         bits for a pageblock in a section's usage map
    memreserve_first           /memreserve/ is looked at before /reserved-memory, which then may fail
    tells_reserved_mem         each region of /reserved-memory has a line in the log
    cma_says_what_was_asked    the CMA area's line has the size that was asked for, not that which it has
    cma_limit_is_asked         cma=SIZE@START-END may end above the DMA limit
    cma_says_node              the CMA area's line ends with the node
    memmap_at_once             sparse_init() takes one buffer for all sections
    ragged_is_none             a property of addresses and sizes that is not whole pairs is none
    usable_ranges              MAX_USABLE_RANGES, of linux,usable-memory-range
    maps_whole_pages           map_mem() leaves out a page that a region has only a part of
    clears_hotplug             numa_init() forgets which memory is hotpluggable
    notes_of_possible_cpus     kexec_file_load()'s core header has the notes of CPUs that are not present, too
    sysfs_has_present_cpus     /sys/devices/system/cpu has no folder for CPUs that are not present
    reserved_mem_sorted_by_node  regions that are equal keep their order, and one with alloc-ranges joins another
    reserved_mem_late          regions with a reg have their say when the tree is unflattened
    reserves_first_reg         of a region's reg the first entry counts, and its driver is asked before
    va_bits                    VA_BITS of a kernel that nobody has configured otherwise
    modules_vsize              MODULES_VSIZE in bytes: the image is linked behind it
    vmemmap_at_end             VMEMMAP_END is 1 GiB below the end of all addresses, whatever a struct page takes
    vmcore_note_align          p_align of /proc/vmcore's notes
    guest                      the guest kernel that has the era's structures: fixtures/build.py
    """

    protects_by_pte: bool = True
    early_reservation: bool = True
    falls_back_high: bool = False
    falls_back_low: bool = False
    low_where_it_reaches_over: bool = False
    kfence_early_pool: bool = True
    generic_reservation: bool = False
    range_prefixes: tuple[str, str] = ("", "")
    refuses_all_of_ram: bool = False
    gives_up: bool = True
    suffixes: tuple[str, ...] = (",high", ",low")
    counts_low_region: bool = False
    top_down_skips_last_page: bool = True
    text_alias_starts_at_text: bool = False
    ima_in_crash_images: bool = True
    ima_filled_at_reboot: bool = False
    load_flags: int = 0x1
    file_load_flags: int = 0x7
    ima_extra_memory: bool = False
    kho: bool = False
    kho_aligns_by_buddy: bool = False
    segments_in_cma: bool = False
    skips_checksum: bool = False
    garbage_in_kexec_buf: tuple[str, ...] = ()
    reserves_before_memmap: bool = False
    reserves_cma: bool = False
    dm_crypt_keys: bool = False
    rodata_noalias: bool = False
    splits_live: tuple[int, ...] = ()
    marks_invalid: bool = False
    sysfs_kexec: bool = False
    tells_uid: bool = False
    tells_preemption: bool = False
    marks_trace: bool = False
    panic_force_cpu: bool = False
    nokaslr_field: str = "kaslr.disabled"
    stop_retries: bool = False
    idmap_tables: int = 4
    data_alias: str = "writable"
    of_property_size: int = 96
    reserved_mem_size: int = 0
    numa_distances: bool = True
    node_cpumasks: bool = False
    cma_for_each_node: bool = False
    pglist_data_size: int = 11392
    zone_dma_limit: bool = False
    bus_has_cells: bool = False
    checks_dma_ranges: bool = False
    section_usage_bits: int = 4
    memreserve_first: bool = True
    tells_reserved_mem: bool = False
    cma_says_what_was_asked: bool = False
    cma_limit_is_asked: bool = False
    cma_says_node: bool = False
    memmap_at_once: bool = True
    ragged_is_none: bool = False
    usable_ranges: int = 2
    maps_whole_pages: bool = False
    clears_hotplug: bool = False
    notes_of_possible_cpus: bool = False
    sysfs_has_present_cpus: bool = False
    reserved_mem_sorted_by_node: bool = False
    reserved_mem_late: bool = False
    reserves_first_reg: bool = False
    va_bits: int = 48
    modules_vsize: int = 128 << 20
    vmemmap_at_end: bool = False
    vmcore_note_align: int = 0
    guest: str = "vmlinux"


class Change(NamedTuple):
    """A rule that is otherwise from a release on, and the commit or where that was seen."""

    since: tuple[int, int]
    rule: str
    value: Any
    source: str


CHANGES = (
    Change((6, 2), "falls_back_high", True, "a9ae89df7377, a149cf00b158"),
    Change((6, 2), "low_where_it_reaches_over", True, "a149cf00b158"),
    Change((6, 2), "gives_up", False, "a9ae89df7377: the limit is as high as high memory goes"),
    Change((6, 2), "kfence_early_pool", False, "mainline before 6.4; the stable 6.1 has it"),
    Change((6, 3), "memreserve_first", False, "b41328187629"),
    Change((6, 4), "tells_reserved_mem", True, "seen in 6.12.117, not in 6.1.192"),
    Change((6, 4), "kfence_early_pool", True, "bfa7965b33ab"),
    Change((6, 4), "protects_by_pte", False, "0d124e96051b"),
    Change((6, 4), "early_reservation", False, "504cae453f82"),
    Change((6, 5), "falls_back_low", True, "6c4dcaddbd36"),
    Change((6, 5), "low_where_it_reaches_over", False, "6c4dcaddbd36"),
    Change((6, 5), "counts_low_region", True, "16c6006af4d4"),
    Change((6, 5), "nokaslr_field", "arm64_sw.nokaslr", "0ddc312b7c73"),
    Change((6, 5), "modules_vsize", 2 << 30, "3e35d303ab7d"),
    Change((6, 5), "guest", "vmlinux-6.5", "linked behind the modules; sparse_irqs (721255b9826b)"),
    Change((6, 5), "reserved_mem_sorted_by_node", True, "6.12.118's of_reserved_mem.c, not 6.1.192's"),
    Change((6, 6), "guest", "vmlinux-6.6", "page flags in another order"),
    Change(
        (6, 6), "notes_of_possible_cpus", True, "crash_prepare_elf64_headers() of the crash hotplug series"
    ),
    Change((6, 6), "load_flags", 0x5, "a72bbec70da2: KEXEC_UPDATE_ELFCOREHDR"),
    Change((6, 7), "generic_reservation", True, "fdc268232dbb"),
    Change((6, 7), "range_prefixes", ("crashkernel: ", "crahskernel: "), "seen in 6.12, not in 6.1"),
    Change((6, 7), "top_down_skips_last_page", False, "816d334afa85"),
    Change((6, 8), "file_load_flags", 0xF, "KEXEC_FILE_DEBUG"),
    Change((6, 8), "sysfs_has_present_cpus", True, "GENERIC_CPU_DEVICES; seen in 7.3.4"),
    Change((6, 9), "va_bits", 52, "352b0395b505 and those before it: Kconfig's default"),
    Change((6, 9), "vmemmap_at_end", True, "32697ff38287; as 6.12.117's VMCOREINFO has it"),
    Change((6, 9), "idmap_tables", 0, "the early mapping in C: not in 6.12.118's memblock=debug"),
    Change(
        (6, 10), "guest", "vmlinux-6.12", "page flags in another order, page types; 6.12.117's VMCOREINFO"
    ),
    Change((6, 10), "load_flags", 0xD, "79365026f869: KEXEC_CRASH_HOTPLUG_SUPPORT"),
    Change((6, 11), "of_property_size", 104, "bin_attribute.llseek; 6.12.118's BTF"),
    Change((6, 11), "gives_up", True, "the dead loop of riscv64, mended for all"),
    Change((6, 12), "cma_says_node", True, "seen in 6.12.117"),
    Change((6, 12), "refuses_all_of_ram", True, "seen in 6.12.117"),
    Change((6, 12), "text_alias_starts_at_text", True, "seen in 6.12.117"),
    Change((6, 12), "ima_in_crash_images", False, "upstream since 6.16, and in the stable 6.12"),
    Change(
        (6, 12), "ima_filled_at_reboot", True, "9ee8888a80fe: upstream since 6.16, and in the stable 6.12"
    ),
    Change((6, 12), "numa_distances", False, "mm/numa_memblks.c"),
    Change((6, 12), "node_cpumasks", True, "CPUMASK_OFFSTACK; seen in 6.12.118's memblock=debug"),
    Change((6, 12), "clears_hotplug", True, "numa_memblks_init()"),
    Change((6, 12), "maps_whole_pages", True, "seen in 6.12.118 and 7.3.4; not in 6.1.192's map_mem()"),
    Change((6, 12), "reserved_mem_late", True, "fdt_scan_reserved_mem_reg_nodes() of 6.12.118"),
    Change((6, 12), "vmcore_note_align", 4, "seen in 6.12.117, not in 6.1.176"),
    Change((6, 12), "zone_dma_limit", True, "ba0fb44aed47: an address in place of a number of bits"),
    Change((6, 12), "pglist_data_size", 14144, "6.12.118's BTF"),
    Change((6, 12), "reserved_mem_size", 48, "alloc_reserved_mem_array(), as 6.12.118 has it"),
    Change((6, 12), "stop_retries", True, "seen in 6.12.117, not in 6.1.192"),
    Change((6, 12), "tells_uid", True, "seen in 6.12.117"),
    Change((6, 13), "marks_trace", True, "seen in 7.3.4, not in 6.12.117"),
    Change(
        (6, 14),
        "guest",
        "vmlinux-6.18",
        "page flags; timekeeper_data, total_nr_irqs, nr_queued: 7.3's sources, each since some release behind 6.12",
    ),
    Change((6, 15), "tells_preemption", True, "preempt_model_str(): seen in 7.3.4, not in 6.12.117"),
    Change((6, 15), "cma_says_what_was_asked", True, "areas of several ranges: seen in 7.3.4"),
    Change((6, 15), "cma_says_node", False, "areas of several ranges: not in 7.3.4"),
    Change(
        (6, 16),
        "garbage_in_kexec_buf",
        ("image_load", "load_other_segments"),
        "kexec_random_range_start() came, with crash_dump_dm_crypt of x86",
    ),
    Change((6, 16), "ima_extra_memory", True, "seen in 7.3.4, not in 6.12.117"),
    Change((6, 16), "kho", True, "ARCH_SUPPORTS_KEXEC_HANDOVER"),
    Change((6, 17), "garbage_in_kexec_buf", ("load_other_segments",), "image_load() is mended in 6.17-rc"),
    Change((6, 17), "segments_in_cma", True, "07d24902977e"),
    Change((6, 17), "range_prefixes", ("crashkernel: ", "crashkernel: "), "seen in 7.3, not in 6.12"),
    Change((6, 17), "file_load_flags", 0x3F, "07d24902977e: FORCE_DTB, NO_CMA"),
    Change((6, 17), "suffixes", (",high", ",low", ",cma"), "crashkernel=X,cma of x86"),
    Change((6, 18), "garbage_in_kexec_buf", (), "struct kexec_buf kbuf = {}: seen in 7.3.4"),
    Change((6, 18), "rodata_noalias", True, "arch_parse_debug_rodata() of asm/setup.h; seen in 7.3.4"),
    Change((6, 18), "splits_live", (2,), "a166563e7ec3; level 2 by a list of CPUs"),
    Change((6, 18), "bus_has_cells", True, "of_bus_default_match(): seen in 6.18.15, not in 6.12.118"),
    Change((6, 18), "cma_limit_is_asked", True, "seen in 6.18.15 and 7.3.4, not in 6.12.118"),
    Change((6, 19), "sysfs_kexec", True, "deprecated the files beside it; seen in 7.3.4"),
    Change(
        (7, 0),
        "reserves_before_memmap",
        True,
        "nodes, zones and memory map initialized in one place",
    ),
    Change((7, 0), "checks_dma_ranges", True, "parser_init(): seen in 7.3.4, not in 6.18.15"),
    Change((7, 0), "panic_force_cpu", True, "d815a1fe40ca"),
    Change((7, 0), "guest", "vmlinux-7.3", "page.compound_info, printk_info.comm; 7.3.4's BTF"),
    Change((7, 0), "of_property_size", 112, "7.3.4's BTF"),
    Change((7, 0), "pglist_data_size", 14400, "7.3.4's BTF"),
    Change((7, 0), "section_usage_bits", 8, "seen in 7.3.4's memblock=debug"),
    Change((7, 0), "memmap_at_once", False, "seen in 7.3.4's memblock=debug"),
    Change((7, 1), "dm_crypt_keys", True, "e3a84be1ec2f"),
    Change((7, 2), "data_alias", "read-only", "seen in 7.2.13"),
    Change((7, 3), "data_alias", "invalid", "mark_linear_data_alias_valid(); seen in 7.3.4"),
    Change((7, 3), "kho_aligns_by_buddy", True, "SCRATCH_ALIGNMENT_BYTES: seen in 7.3.4"),
    Change((7, 3), "skips_checksum", True, "ee2e80ff50a2"),
    Change((7, 3), "reserved_mem_size", 40, "7.3.4's BTF"),
    Change((7, 3), "marks_invalid", True, "seen in 7.3.4, not in 6.12.117"),
    Change((7, 3), "splits_live", (2, 3), "cpu_supports_bbml3(): or what ID_AA64MMFR2_EL1 says"),
    Change((7, 3), "reserves_cma", True, "c12c63d05dfe"),
    Change((7, 3), "cma_for_each_node", True, "seen in 7.3.4; not in 6.18.15's configuration"),
    Change((7, 3), "reserves_first_reg", True, "fdt_scan_reserved_mem_late() of 7.3.4, reserved_mem_ops"),
    Change((7, 3), "usable_ranges", 6, "c12c63d05dfe"),
    Change((7, 3), "ragged_is_none", True, "of_flat_dt_get_addr_size_prop(): in 7.3.4, not in 6.12.118"),
)
"""Every change that the model knows, in order of release."""
